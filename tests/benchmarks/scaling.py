"""How time grows with pixels, classes, bank size and runs, measured on this machine's CPU with one thread.

    .venv/bin/python -m tests.benchmarks.scaling docs/images/scaling.png

Each point is the median of five calls, after one that warms up. The dashed line is what proportional growth from the
first point would give.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
import yaml
from matplotlib import pyplot
from torch import Tensor

from u2pl.components.contrast import contrastive_loss, labelled_negatives, members
from u2pl.components.memory_bank import MemoryBank
from u2pl.components.pseudo_labels import entropy, entropy_threshold, pseudo_labels
from u2pl.experiments import load_suite
from u2pl.experiments.plan import plan
from u2pl.files import atomic_path

Work = Callable[[], object]
IMAGES, CHANNELS = 4, 256


def random_probs(classes: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (2 * torch.randn(IMAGES, classes, side, side, generator=generator)).softmax(1)


def partition(side: int) -> Work:
    """Entropies, their percentile and the pseudo-labels of four crops, 21 classes."""
    probs = random_probs(21, side)
    return lambda: pseudo_labels(probs, entropy_threshold(entropy(probs), 0.2), 255)


def contrast(classes: int, capacity: int) -> Work:
    """The contrastive step with its backward pass for four images of 65 x 65 positions, the bank full."""
    probs = random_probs(classes, 65)
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, IMAGES, CHANNELS, 65, 65, generator=generator)
    labels = probs.argmax(1)
    own = members(labels, classes)
    anchors, negatives = own & (probs > 0.3), labelled_negatives(probs, own, labels != 255, r_low=3)
    bank = MemoryBank([capacity] * classes, CHANNELS)
    while int(bank.count.min()) < capacity:
        bank.push(teacher.permute(0, 2, 3, 1).flatten(0, 2), negatives.transpose(0, 1).flatten(1))

    def work() -> None:
        leaf = student.detach().requires_grad_()
        sizes = {"n_anchors": 50, "n_negatives": 256}
        contrastive_loss(leaf, teacher, anchors, negatives, bank, **sizes, tau=0.5, generator=generator).backward()

    return work


def planning(seeds: int) -> Work:
    """Parameters and plan of the paper's tables with so many seeds a cell."""
    root = Path(tempfile.mkdtemp(dir=FOLDER.name))
    shutil.copytree("params", root / "params")
    path = root / "params" / "scales" / "paper.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"seeds": list(range(seeds))}))
    return lambda: plan(load_suite("paper", root), [], root / "data", root / "results")


def runs(seeds: int) -> int:
    return seeds * len(load_suite("paper").runs) // len(load_suite("paper").params.seeds)


FOLDER = tempfile.TemporaryDirectory()
# Title, what is counted, the settings, how many of it a setting has, and the work.
Panel = tuple[str, str, list[int], Callable[[int], int], Callable[[int], Work]]
PANELS: list[Panel] = [
    ("entropy partition", "pixels", [65, 129, 257, 513], lambda side: IMAGES * side * side, partition),
    ("contrastive step", "classes", [5, 10, 21, 42], lambda n: n, lambda n: contrast(n, 3000)),
    ("contrastive step", "vectors a class", [300, 3000, 10000, 30000], lambda n: n, lambda n: contrast(21, n)),
    ("plan of the paper's grid", "runs", [1, 3, 6, 12], runs, planning),
]


def milliseconds(work: Work) -> float:
    work()
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    target = parser.parse_args().target
    torch.set_num_threads(1)
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(12, 3), layout="constrained")
    for axis, (title, unit, settings, count, work) in zip(axes, PANELS, strict=True):
        counts = [count(value) for value in settings]
        times = [milliseconds(work(value)) for value in settings]
        print(title, unit, *(f"{n}: {t:.1f} ms" for n, t in zip(counts, times, strict=True)), sep="  ", flush=True)
        axis.loglog(counts, times, "o-", color="#0072b2")
        axis.loglog(counts, [times[0] * n / counts[0] for n in counts], "--", color="#888888")
        axis.set(title=title, xlabel=unit)
        axis.set_xticks(counts, [f"{n:,}" for n in counts], rotation=30)
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ms a call (dashed: proportional)")
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=100)
    FOLDER.cleanup()


if __name__ == "__main__":
    main()
