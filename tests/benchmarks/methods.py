"""What a step of each method costs on this machine's CPU, in time and in memory, relative to Mean Teacher's.

    .venv/bin/python -m tests.benchmarks.methods                            # the small network of the benchmarks
    .venv/bin/python -m tests.benchmarks.methods --scale paper --crop 513 --batch 2 --steps 1

Random images, weights and labels; a whole step: forward, backward, optimisers, averages. Memory is the most bytes of
tensors alive at once during a step above those before it, from torch's profiler, and beside it what stays: networks,
averages, banks, optimisers. A process per method, so that none inherits another's memory.
"""

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from tests.benchmarks.conftest import peak_bytes
from u2pl.engine.evaluate import network_of
from u2pl.experiments import RunSpec, load_suite
from u2pl.methods import METHODS, Progress, Setup, build_method

REFERENCE = "mean_teacher"


def spec_of(method: str, scale: str, dataset: str) -> RunSpec:
    """A run of a method at a scale on a data set, with the settings of its first run where no table has it there."""
    runs = sorted(load_suite(scale).runs.values(), key=lambda run: run.dataset_name != dataset)
    own = next(run for run in runs if run.method == method)
    return runs[0].model_copy(update={"method": method, "settings": own.settings})


def batch_of(size: int, crop: int, classes: int, unlabelled: int) -> dict[str, Tensor]:
    """All that a method may ask for."""
    masks = F.interpolate(torch.randint(classes, (2 * size, 1, 5, 5)).float(), crop)[:, 0].long()
    batch = {"mask_l": masks[:size], "mask_l2": masks[size:], "index_u": torch.arange(size) % unlabelled}
    for end in ("l", "l2", "u", "u2", "p"):
        batch[f"image_{end}"] = torch.randn(size, 3, crop, crop)
        batch[f"valid_{end}"] = torch.ones(size, crop, crop, dtype=torch.bool)
    return batch | {"raw_u": torch.randint(256, (size, 3, crop, crop), dtype=torch.uint8)}


def normalise(images: Tensor) -> Tensor:
    return (images.float() - 116) / 57


def measured(name: str, scale: str, dataset: str, crop: int, size: int, steps: int) -> tuple[float, int, int]:
    """Seconds of a step (the shortest of `steps` and the profiled one), its peak bytes, and those that stay."""
    torch.set_num_threads(1 if scale == "demo" else 2)
    torch.manual_seed(0)
    spec = spec_of(name, scale, dataset)
    classes = len(spec.dataset.classes)
    setup = Setup(lambda: network_of(spec), classes, 255, unlabelled=100, batch=size, normalise=normalise)
    method: Any = build_method(name, spec.settings, setup).train()
    optimisers = method.optimisers(spec.recipe)
    batch = batch_of(size, crop, classes, 100)
    epoch = spec.recipe.epochs // 2  # behind every warm-up
    progress = Progress(epoch, spec.recipe.epochs, 10 * epoch, 10 * spec.recipe.epochs, torch.Generator())

    def step() -> None:
        method(batch, progress)["loss"].backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        method.after_step(progress)

    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    peak = peak_bytes(step)
    times.append(time.perf_counter() - begin)
    tensors = list(method.state_dict().values())
    tensors += [value for optimiser in optimisers for state in optimiser.state.values() for value in state.values()]
    return min(times), peak, sum(t.nbytes for t in tensors if isinstance(t, Tensor))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="demo")
    parser.add_argument("--dataset", default="pascal")
    parser.add_argument("--crop", type=int, default=129)
    parser.add_argument("--batch", type=int, default=4, help="images per stream")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    console = Console(width=200)
    what = f"{arguments.scale}, {arguments.dataset}: {arguments.batch} images per stream, crop {arguments.crop}"
    console.print(f"{what}, torch {torch.__version__}, CPU")
    found: dict[str, tuple[float, int, int]] = {}
    spawn = multiprocessing.get_context("spawn")
    for name in [REFERENCE, *(name for name in arguments.methods if name != REFERENCE)]:
        with ProcessPoolExecutor(1, spawn) as process:
            job = process.submit(
                measured, name, arguments.scale, arguments.dataset, arguments.crop, arguments.batch, arguments.steps
            )
            found[name] = seconds, peak, stays = job.result()
        time_ratio, peak_ratio, stays_ratio = (a / b for a, b in zip(found[name], found[REFERENCE], strict=True))
        console.print(
            f"| {name} | {seconds:.2f} | {time_ratio:.2f} | {peak / 2**30:.3f} | {peak_ratio:.2f} "
            f"| {stays / 2**20:.0f} | {stays_ratio:.2f} |"
        )


if __name__ == "__main__":
    main()
