"""A prepared data set of coloured rectangles, small enough to train on within a test."""

import hashlib
import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made
import numpy as np
import pytest
import torch
import torch.distributed as dist
from made import PREPARED, SPLIT
from PIL import Image

from tests.small import settings_for
from u2pl.experiments.schema import Dataset, Recipe
from u2pl.experiments.suite import RunSpec
from u2pl.ranks.collectives import rank, world_size
from u2pl.ranks.layers import process_group

torch.set_num_threads(1)
COLOURS = np.array([[40, 40, 40], [220, 40, 40], [40, 40, 220]])


def draw(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros((height, width), dtype=np.uint8)
    for label in (1, 2):
        top, left = rng.integers(0, height - 16), rng.integers(0, width - 16)
        mask[top : top + 16, left : left + 16] = label
    noise = rng.integers(-20, 21, size=(height, width, 3))
    image = (COLOURS[mask] + noise).clip(0, 255).astype(np.uint8)
    mask[0] = 255
    return image, mask


ESTIMATE = {"supervised_step": 1, "semi_supervised_step": 1, "validation": 1, "weights_mb": 1}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    for name in ("images", "masks", "lists"):
        (folder / name).mkdir()
    lists = {"train": [f"train_{i}" for i in range(12)], "val": [f"val_{i}" for i in range(4)]}
    for name, ids in lists.items():
        (folder / "lists" / f"{name}.txt").write_text("".join(f"{i}\n" for i in ids))
        for image_id in ids:
            image, mask = draw(rng, 40, 48)
            Image.fromarray(image).save(folder / "images" / f"{image_id}.png")
            Image.fromarray(mask).save(folder / "masks" / f"{image_id}.png")
    (folder / "manifest.json").write_text(json.dumps(PREPARED))
    return folder


@pytest.fixture(scope="session")
def split(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split")
    ids = (prepared / "lists" / "train.txt").read_text().split()
    (folder / "labeled.txt").write_text("".join(f"{i}\n" for i in ids[:6]))
    (folder / "unlabeled.txt").write_text("".join(f"{i}\n" for i in ids[6:]))
    (folder / "val.txt").write_text((prepared / "lists" / "val.txt").read_text())
    (folder / "manifest.json").write_text(json.dumps(SPLIT))
    return folder


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., RunSpec]:
    def make(
        method: str = "u2pl",
        mode: str = "centre_crop",
        seed: int = 0,
        settings: dict[str, Any] | None = None,
        **recipe: Any,
    ) -> RunSpec:
        network = {"encoder": "resnet18", "width": 8, "channels": 8, "representation": 8}
        dataset = {
            "kind": "pascal",
            "classes": [{"name": str(i), "colour": tuple(int(v) for v in COLOURS[i])} for i in range(3)],
            "mean": (123.675, 116.28, 103.53),
            "std": (58.395, 57.12, 57.375),
            "archives": {},
            "counts": {"train": 12, "val": 4},
            "evaluation": {"mode": mode, "crop": 33, "batch": 3},
        }
        small = {"anchors_per_class": 8, "negatives_per_anchor": 8, "r_low": 1, "r_high": 3, "bank_size": 200}
        small |= {"bank_size_background": 300, "warmup_epochs": 1, "gct_detector_width": 4}
        values = {"lr": 0.02, "weight_decay": 1e-4, "epochs": 3, "batch": 2, "crop": 33} | recipe
        return RunSpec(
            scale="test",
            protocol="toy",
            fraction="1/2",
            labelled=6,
            method=method,
            fidelity="paper",
            overrides={},
            seed=seed,
            dataset_name="toy",
            dataset=Dataset.model_validate(dataset),
            recipe=Recipe.model_validate({"network": network, "estimate": ESTIMATE, **values}),
            settings=settings_for(method, **(small | (settings or {}))),
        )

    return make


@pytest.fixture(scope="session")
def record() -> Callable[[RunSpec, Path], None]:
    """Write a run.json that fits the folder's weights.pt."""

    def write(spec: RunSpec, folder: Path) -> None:
        found = hashlib.sha256((folder / "weights.pt").read_bytes()).hexdigest()
        (folder / "run.json").write_text(json.dumps(made.record(spec.id, weights=found)))

    return write


@pytest.fixture(scope="session")
def fork() -> Callable[[int, Callable[[], None]], list[int | None]]:
    """Call a function in so many forked processes, as torchrun's ranks if there are several; gives the exit codes."""

    def start(world: int, work: Callable[[], None]) -> list[int | None]:
        # A free port, taken now; the first rank serves it. A server here would be a thread, which a fork may catch with
        # a lock in its hand.
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]

            def enter(number: int) -> None:
                ranks = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": world, "MASTER_PORT": port}
                agent = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
                if world > 1:
                    os.environ.update({name: str(value) for name, value in ranks.items()} | agent)
                if number == 0:
                    fd = listening.detach()
                    store = dist.TCPStore("127.0.0.1", port, None, True, wait_for_workers=False, master_listen_fd=fd)
                    assert store.port == port
                work()

            context = multiprocessing.get_context("fork")
            processes = [context.Process(target=enter, args=(number,)) for number in range(world)]
            for process in processes:
                process.start()
        for process in processes:
            process.join(120)
            process.kill()
            process.join()
        return [process.exitcode for process in processes]

    return start


@pytest.fixture(scope="session")
def on_ranks(
    fork: Callable[..., list[int | None]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int, Callable[[], Any]], list[Any]]:
    """What a function returns in each of so many ranks."""

    def start(world: int, work: Callable[[], Any]) -> list[Any]:
        folder = tmp_path_factory.mktemp("ranks")

        def enter() -> None:
            with process_group(torch.device("cpu")):
                assert world_size() == world
                torch.save(work(), folder / f"{rank()}.pt")

        assert fork(world, enter) == [0] * world
        return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(world)]

    return start
