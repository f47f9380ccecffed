"""What a step's forward pass keeps for its backward pass, in GiB: counted on the meta device, which needs no GPU.

    .venv/bin/python -m tests.benchmarks.memory

Of float32 networks, all images on one device. Weights, their gradients and momentum come on top, as do workspaces and
what the backward pass itself allocates.
"""

from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch

from u2pl.components.progress import Progress
from u2pl.experiments import load_suite
from u2pl.experiments.settings import SETTINGS
from u2pl.experiments.suite import RunSpec
from u2pl.methods import Setup, build_method
from u2pl.models import build_network

GIB = 2**30
CASES: list[tuple[str, dict[str, Any]]] = [
    ("suponly", {}),
    ("mean_teacher", {}),
    ("cps", {}),
    ("gct", {}),
    ("gct", {"gct_prepass": "shared"}),
]


def kept_bytes(spec: RunSpec, name: str, changes: dict[str, Any]) -> int:
    """Bytes of all storages that autograd saves in a forward pass, parameters and batch left out."""
    crop, n, classes = spec.recipe.crop, spec.recipe.batch, len(spec.dataset.classes)
    with torch.device("meta"):
        setup = Setup(lambda: build_network(spec.recipe.network, classes), classes, spec.dataset.ignore_label)
        method: Any = build_method(name, SETTINGS[name](**changes), setup).train()
        batch = {f"image_{stream}": torch.zeros(n, 3, crop, crop) for stream in ("l", "u")}
        batch["mask_l"] = torch.zeros(n, crop, crop, dtype=torch.int64)
        if name == "cps":
            method.mask = lambda images, generator: torch.zeros(n, crop, crop, dtype=torch.bool)
    own = {t.untyped_storage()._cdata for t in (*method.parameters(), *method.buffers(), *batch.values())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    plain = patch("torch.autocast", lambda *_, **__: nullcontext())  # it knows no meta device
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.device("meta"), plain, hooks:
        method(batch, Progress(0, 1, 0, 10, torch.Generator()))
    return sum(storage.nbytes() for storage in kept.values())


def main() -> None:
    suite = load_suite("paper")
    for run in ("pascal_blender-1323-u2pl-seed0", "cityscapes-744-u2pl-seed0"):
        spec = suite.runs[run]
        print(f"{spec.dataset.kind}: {spec.recipe.batch} images per stream of {spec.recipe.crop} pixels")
        for name, changes in CASES:
            found = kept_bytes(spec, name, changes) / GIB
            images = spec.recipe.batch * (1 if name == "suponly" else 2)
            print(f"  {name} {changes or ''}: {found:.1f} GiB, {found / images:.2f} per image")


if __name__ == "__main__":
    main()
