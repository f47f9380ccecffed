"""Records of runs that nobody trained, whole as the engine would write them."""

from typing import Any

SHA = "0123456789abcdef" * 4
PREPARED = {
    "dataset": "pascal",
    "suffix": ".png",
    "classes": ["background", "thing", "other"],
    "ignore_label": 255,
    "format": 1,
    "counts": {"train": 12, "val": 4},
    "files": 32,
    "content_sha256": SHA,
    "archives": {},
}
SPLIT = {
    "counts": {"labeled": 6, "unlabeled": 6, "val": 4},
    "sha256": {"labeled": SHA, "unlabeled": SHA, "val": SHA},
    "prepared_content_sha256": SHA,
    "dataset": "toy",
    "candidates": "train",
    "universe": "train",
    "labelled": 6,
    "source": "drawn",
    "nested": False,
    "seed": 0,
}
PROVENANCE = {
    "git": {"commit": "a" * 40, "dirty": False, "diff_sha256": None},
    "params_sha256": SHA,
    "split_sha256": SHA,
    "split": SPLIT,
    "data_sha256": SHA,
    "data": PREPARED,
    "encoder_weights": None,
    "libraries": {"torch": "1.0"},
    "device": "cpu",
    "cpu": "A CPU (x86_64, AVX512)",
    "platform": "Linux",
    "threads": 1,
    "seed": 0,
    "world_size": 1,
    "steps": 10,
    "wall_time_s": 50.0,
    "images_per_s": 4.0,
    "peak_memory_mb": 100.0,
}
SPEC = {
    "method": "u2pl",
    "seed": 0,
    "dataset_name": "pascal",
    "dataset": {"evaluation": {}},
    "recipe": {"network": {}, "batch": 2, "crop": 33, "epochs": 8, "validate_every": 1},
    "settings": {"batch_size": "per_stream"},
    "departures": {},
}


def record(
    run: str, spec: dict[str, Any] = SPEC, weights: str = SHA, history: str = SHA, **took: Any
) -> dict[str, Any]:
    """run.json; `took` replaces values of the provenance."""
    files = {"weights.pt": weights, "history.csv": history}
    whole = {"id": run, "run": run, "spec": spec, "files": files, "provenance": PROVENANCE | took}
    return whole | {"epochs": 8, "best_epoch": 7, "best_miou": 1.0}


def scores(miou: float, classes: int = 2, absent: int = 0) -> dict[str, Any]:
    """Of a checkpoint whose IoU is `miou` for each class but the first `absent` ones, which occur nowhere.

    Each class has hits, and misses that are taken for the next class: IoU = hits / (hits + 2 misses).
    """
    there, pixels = classes - absent, 10**13
    hits = round(pixels * miou / 100)
    matrix = [[0] * classes for _ in range(classes)]
    for c in range(there):
        matrix[absent + c][absent + c] = hits
        matrix[absent + c][absent + (c + 1) % there] = (pixels - hits) // 2
    return {"confusion": matrix, "iou": [None] * absent + [miou] * there, "miou": miou}


def evaluation(best: float, last: float, weights: str = SHA, **shape: int) -> dict[str, Any]:
    """evaluation.json"""
    return {"best": scores(best, **shape), "last": scores(last, **shape), "weights_sha256": weights}


def history(*rows: tuple[int, float, float | None]) -> str:
    """history.csv of (epoch, loss, val_miou)."""
    lines = [f"{epoch},{10 * epoch},0.1,{loss},4.0,{'' if miou is None else miou}\n" for epoch, loss, miou in rows]
    return "epoch,step,lr,loss,images_per_s,val_miou\n" + "".join(lines)
