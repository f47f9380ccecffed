"""What a training step costs on this machine: images/s, peak memory, and the share of it outside the networks.

    .venv/bin/python -m tests.benchmarks.step                      # U2PL at the paper's size: one large GPU
    .venv/bin/python -m tests.benchmarks.step --scale demo --run pascal_blender-6-u2pl-seed0 --device cpu

Images are synthetic, weights random, batches made beforehand: loading is not measured here. "Outside" is what is left
of a step without the passes through the networks, the backward pass and the optimiser: losses, thresholds, ranks,
mixing, memory bank, moving average.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from u2pl.data.prepare import prepare
from u2pl.data.splits.draw import draw
from u2pl.data.synthetic.archives import synthesize
from u2pl.engine.seeding import choose_device, deterministic
from u2pl.engine.trainer import Trainer
from u2pl.experiments import RunSpec, load_suite

LOSS = ("logits", "representation", "auxiliary")
VARIANTS: dict[str, dict[str, object]] = {
    "fp32 (reference)": {},
    "fp32, not deterministic": {"free": True},
    "tf32": {"tf32": True},
    "bf16": {"precision": "bf16"},
    "bf16, channels_last, fused_sgd": {"precision": "bf16", "channels_last": True, "fused_sgd": True},
    "the same, not deterministic": {"precision": "bf16", "channels_last": True, "fused_sgd": True, "free": True},
}


def data(spec: RunSpec, root: Path) -> RunSpec:
    """Synthetic images a little larger than the crop, prepared and split below `root`; the spec that fits them."""
    side, batch = spec.recipe.crop + 7, spec.recipe.batch
    counts = {"train": batch, "val": 1} | ({"train_aug": 3 * batch} if spec.dataset.kind == "pascal" else {})
    dataset = spec.dataset.model_copy(update={"counts": counts})
    size, extra = (side, side), counts.get("train_aug", batch) - batch
    synthesize(dataset.kind, root, seed=0, train=batch, extra=extra, val=1, size=size)
    prepare(dataset, root, root / "prepared", 2)
    protocol = load_suite(spec.scale).protocols[spec.protocol]
    draw(protocol, batch // 2, root / "prepared", root / "split", 0)
    weights = spec.recipe.network.model_copy(update={"weights": {}})
    return spec.model_copy(
        update={"dataset": dataset, "recipe": spec.recipe.model_copy(update={"network": weights, "workers": 0})}
    )


def networks(trainer: Trainer, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """The passes of a U2PL step through its networks, alone: teacher twice, student there and back, optimiser."""
    moved = trainer._to_device(batch)
    images = torch.cat([value for name, value in moved.items() if name.startswith("image")])
    half = trainer.spec.recipe.precision == "bf16"
    method: Any = trainer.method
    student, teacher, (optimiser,) = method.student, method.teacher.network, trainer.optimisers

    def passes() -> None:
        with torch.autocast(trainer.device.type, torch.bfloat16, enabled=half):
            with torch.no_grad():
                teacher.eval()(images)
                teacher.train()(images)
            output = student(images)
            loss = sum(value.float().square().mean() for name, value in output.items() if name in LOSS)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[union-attr]
        optimiser.step()

    return passes


def seconds(function: Callable[[], object], steps: int, device: torch.device) -> float:
    """Mean time of a call, after two that warm up."""
    for _ in range(2):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="paper")
    parser.add_argument("--run", default="pascal_blender-1323-u2pl-seed0")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    spec = load_suite(arguments.scale).runs[arguments.run]
    device = choose_device(arguments.device, spec.recipe.gpus)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    table = Table(title=f"{spec.id} at scale {spec.scale}: {name}, torch {torch.__version__}")
    for heading in ("variant", "ms a step", "images/s", "peak GiB", "outside %"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    with tempfile.TemporaryDirectory() as folder:
        spec = data(spec, Path(folder))
        for title, changes in VARIANTS.items():
            switches = {key: value for key, value in changes.items() if key != "free"}
            recipe = spec.recipe.model_copy(update=switches)
            with deterministic(recipe.threads, tf32=recipe.tf32):
                if "free" in changes:
                    torch.use_deterministic_algorithms(False)
                    torch.backends.cudnn.benchmark = True
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                variant = spec.model_copy(update={"recipe": recipe})
                trainer = Trainer(variant, Path(folder) / "prepared", Path(folder) / "split", None, device)
                trainer.epoch = spec.settings.warmup_epochs  # the first semi-supervised one
                trainer.method.train()
                batch = next(iter(trainer.batches.epoch(0)))
                step = seconds(lambda: trainer._step(batch, 1000), arguments.steps, device)  # noqa: B023
                peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
                alone = seconds(networks(trainer, batch), arguments.steps, device)
            images = sum(len(value) for key, value in batch.items() if key.startswith("image"))
            table.add_row(
                title, f"{1000 * step:.1f}", f"{images / step:.1f}", f"{peak:.1f}", f"{100 * (1 - alone / step):.1f}"
            )
    Console().print(table)


if __name__ == "__main__":
    main()
