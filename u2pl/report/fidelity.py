"""`u2pl fidelity measure`: what one step of U2PL does under each reading, on a fixed synthetic batch.

The method is the suite's own. Only its bank and its contrastive term are replaced by subclasses that keep count.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.table import Table
from torch import Tensor, nn

from u2pl.components.contrast import presence
from u2pl.components.contrast_released import positional_banks
from u2pl.components.groups import both_streams, extent
from u2pl.components.memory_bank import MemoryBank
from u2pl.components.progress import Progress
from u2pl.components.unreliable_contrast import UnreliableContrast, View
from u2pl.experiments.settings import U2PL
from u2pl.files import atomic_path
from u2pl.methods import Setup
from u2pl.methods.u2pl import U2PL as Method
from u2pl.report.half_trained import IGNORE, NOISE, C, HalfTrained, true_classes

# Differences of the presets that cannot act on one step of given outputs, and why.
LEFT_OUT = {
    "backbone_stem": "it is inside the network",
    "bank_in_checkpoint": "it acts on a resume",
}
# What the paper leaves open and a step shows; the values that the paper preset does not have.
OPEN = {
    "loss_groups": "image",
    "anchors_drawn": "per_image",
    "prt": False,
    "ignored_negatives": True,
    "replacement": False,
    "alpha_epochs": "from_1",
}
FIXED = {"warmup_epochs": 0, "cutmix_probability": 1.0}  # of every row: the first step has the term, and is mixed


@dataclass(frozen=True)
class Case:
    """One row: a preset, perhaps with one setting changed."""

    preset: str
    setting: str  # "" for the preset itself
    value: str
    settings: U2PL

    @property
    def title(self) -> str:
        return f"{self.setting} = {self.value}" if self.setting else f"{self.preset} preset"


@dataclass(frozen=True)
class Numbers:
    """What one step did; `CAPTIONS` says it in words."""

    keys: int
    false_negatives: float  # % of the keys; nan without any
    classes: float
    images: int
    contrastive: float
    gradient: float
    supervised: float
    unsupervised: float


CAPTIONS = {
    "keys": ("keys\npushed", 0),
    "false_negatives": ("false\nneg. %", 1),
    "classes": ("contrib.\nclasses", 2),
    "images": ("images\nof 32", 0),
    "contrastive": ("L_c", 3),
    "gradient": ("gradient\nx 1000", 2),
    "supervised": ("L_s", 4),
    "unsupervised": ("lambda_u\nL_u", 4),
}


def factors(paper: U2PL, released: U2PL) -> list[str]:
    """The settings in which the presets differ and that act on a step, in the order of their declaration."""
    names = [name for name in U2PL.model_fields if getattr(paper, name) != getattr(released, name)]
    return [name for name in names if name not in LEFT_OUT]


def cases(paper: U2PL, released: U2PL) -> Iterator[Case]:
    """Both presets, each with one factor of the other, and the paper's with each open reading."""
    names = factors(paper, released)
    presets = {"paper": (paper, released), "released": (released, paper)}
    for preset, (own, other) in presets.items():
        base = own.model_copy(update=FIXED)
        yield Case(preset, "", "", base)
        flips = {name: getattr(other, name) for name in names}
        yield from (_case(preset, base, name, value) for name, value in flips.items())
        if preset == "paper":
            yield from (_case(preset, base, name, value) for name, value in OPEN.items())


def _case(preset: str, base: U2PL, name: str, value: object) -> Case:
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    return Case(preset, name, shown, base.model_copy(update={name: value}))


class CountingBank(MemoryBank):
    """Also keeps the class and the truth of every key that is pushed: int64 (keys,), each."""

    pushed: tuple[Tensor, Tensor]

    def push(self, features: Tensor, qualified: Tensor, places: Tensor | None = None) -> None:
        classes, pixels = qualified.nonzero(as_tuple=True)
        self.pushed = classes, true_classes(features[pixels if places is None else places[pixels]])
        super().push(features, qualified, places)


class CountingContrast(UnreliableContrast):
    """Also keeps which classes of which group have anchors and a bank that is not empty: bool (G, C)."""

    contributing: Tensor

    def __init__(self, settings: U2PL, channels: int) -> None:
        super().__init__(settings, C, IGNORE, channels)
        self.counted = CountingBank(self.bank.capacity.tolist(), channels)
        self.bank = self.counted

    def term(
        self,
        student: Tensor,
        view: View,
        labels: Tensor,
        trusted: Tensor,
        candidates: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        loss = super().term(student, view, labels, trusted, candidates, generator)
        settings, n = self.settings, len(labels) // 2
        group = extent(settings.contrastive_groups, settings.group_size, n)
        low = torch.cat([self.members(labels[:n]), self.members(labels[n:])]) & trusted[:, None]
        anchors = low & (view.probs > settings.delta_p)
        filled = (self.bank.count > 0).expand(len(both_streams(n, group, labels.device)), C)
        if settings.anchor_class_indexing == "released":
            banks = positional_banks(presence(low, group))
            filled = filled.gather(1, banks.clamp(min=0)) & (banks >= 0)
        self.contributing = presence(anchors, group) & filled
        return loss


def step(settings: U2PL, noise: float, given: dict[str, Tensor]) -> tuple[Numbers, CountingContrast]:
    """One step of U2PL from an empty bank, alpha_t = alpha_0: its numbers, and the term that kept count."""
    method = Method(settings, Setup(lambda: HalfTrained(noise), C, IGNORE))
    method.contrast = contrast = CountingContrast(settings, method.contrast.bank.keys.shape[1])
    outputs: list[Tensor] = []

    def keep(module: nn.Module, images: object, output: dict[str, Tensor]) -> None:
        outputs.append(output["representation"])

    handle = method.student.register_forward_hook(keep)
    losses = method(given, Progress(0, 80, 0, 80 * 662, torch.Generator().manual_seed(0)))
    handle.remove()
    # Nothing but the contrastive term depends on the representation.
    (gradient,) = torch.autograd.grad(losses["loss"], outputs)
    classes, truth = contrast.counted.pushed
    numbers = Numbers(
        keys=len(classes),
        false_negatives=100 * (classes == truth).double().mean().item(),
        classes=contrast.contributing.sum(dim=1).double().mean().item(),
        images=int((gradient != 0).flatten(1).any(dim=1).sum()),
        contrastive=losses["contrastive"].item(),
        gradient=1000 * gradient.double().norm().item(),
        supervised=losses["supervised"].item(),
        unsupervised=losses["unsupervised"].item(),
    )
    return numbers, contrast


def quality(noise: float, given: dict[str, Tensor]) -> tuple[float, float]:
    """Of the unmixed unlabelled images, in % of pixels: right pseudo-labels, and those that train mode labels else."""
    network = HalfTrained(noise)
    with torch.no_grad():
        evaluated, trained = (network.train(mode)(given["image_u"]) for mode in (False, True))
    labels = evaluated["logits"].argmax(dim=1)
    right = labels == true_classes(evaluated["representation"].movedim(1, -1))
    differs = labels != trained["logits"].argmax(dim=1)
    return 100 * right.double().mean().item(), 100 * differs.double().mean().item()


@dataclass(frozen=True)
class Measured:
    noise: str
    right: float  # pseudo-labels, %
    differs: float  # labels between the views, %
    rows: list[tuple[Case, Numbers]]


def measure(chosen: list[Case], given: dict[str, Tensor]) -> list[Measured]:
    """Every case under every noise on the batch `given`; on one thread, so that sums have one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [
            Measured(name, *quality(noise, given), [(case, step(case.settings, noise, given)[0]) for case in chosen])
            for name, noise in NOISE.items()
        ]
    finally:
        torch.set_num_threads(threads)


def _shown(numbers: Numbers) -> list[str]:
    return [f"{value:.{decimals}f}" for value, (_, decimals) in zip(astuple(numbers), CAPTIONS.values(), strict=True)]


def tables(measured: list[Measured]) -> Iterator[Table]:
    """One table per noise."""
    for part in measured:
        title = (
            f"{part.noise} noise: {part.right:.1f} % of pseudo-labels right, the views differ in {part.differs:.1f} %"
        )
        table = Table(title=title, box=SIMPLE, pad_edge=False, collapse_padding=True)
        table.add_column("row", no_wrap=True)
        for heading, _ in CAPTIONS.values():
            table.add_column(heading, justify="right", no_wrap=True)
        for case, numbers in part.rows:
            if not case.setting and case.preset == "released":
                table.add_section()
            table.add_row(case.title if not case.setting else f"  {case.title}", *_shown(numbers))
        yield table


def write_csv(path: Path, measured: list[Measured]) -> None:
    """One row per noise and case; the columns are those of `Numbers`, percentages and means with fixed decimals."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        head = ["noise", "pseudo_labels_right", "views_differ", "preset", "setting", "value"]
        writer.writerow(head + [field.name for field in fields(Numbers)])
        for part in measured:
            for case, numbers in part.rows:
                quality = [f"{part.right:.1f}", f"{part.differs:.1f}"]
                writer.writerow([part.noise, *quality, case.preset, case.setting, case.value, *_shown(numbers)])
