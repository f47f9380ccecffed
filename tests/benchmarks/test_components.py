"""The paper's building blocks against straight-line versions, at the sizes of a training with crops of 257 pixels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from u2pl.components import contrast
from u2pl.components.memory_bank import MemoryBank
from u2pl.components.mixing import cutmix, cutmix_boxes, partners
from u2pl.components.pseudo_labels import drop_unreliable, entropy, entropy_threshold

LABELLED, UNLABELLED, CLASSES, CHANNELS, SIDE = 4, 4, 21, 256, 65
ANCHORS, NEGATIVES, TAU = 50, 256, 0.5
CAPACITIES = [50000] + [30000] * (CLASSES - 1)
IGNORE, CROP = 255, 257


class PlainContrast:
    """Algorithm 1 class by class with boolean indexing and a bank of concatenated tensors."""

    def __init__(self) -> None:
        self.bank = [torch.zeros(0, CHANNELS) for _ in range(CLASSES)]

    def push(self, teacher: Tensor, negatives: Tensor) -> None:
        for c in range(CLASSES):
            self.bank[c] = torch.cat([self.bank[c], teacher[negatives[:, c]]])[-CAPACITIES[c] :]

    def __call__(self, student: Tensor, teacher: Tensor, anchors: Tensor, negatives: Tensor) -> Tensor:
        student = student.permute(0, 2, 3, 1)
        teacher = teacher.permute(0, 2, 3, 1)
        self.push(teacher, negatives)
        loss = torch.zeros(())
        for c in range(CLASSES):
            candidates = student[anchors[:, c]]
            if len(candidates) == 0 or len(self.bank[c]) == 0:
                continue
            positive = teacher[anchors[:, c]].mean(0)
            anchor = candidates[torch.randint(len(candidates), (ANCHORS,))]
            keys = self.bank[c][torch.randint(len(self.bank[c]), (ANCHORS * NEGATIVES,))]
            others = torch.cat([positive.expand(ANCHORS, 1, -1), keys.view(ANCHORS, NEGATIVES, -1)], dim=1)
            logits = F.cosine_similarity(anchor[:, None], others, dim=2) / TAU
            loss = loss + F.cross_entropy(logits, torch.zeros(ANCHORS, dtype=torch.int64))
        return loss / CLASSES


def scene() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Representations, anchors and negatives as a training in progress has them: every class occurs."""
    generator = torch.Generator().manual_seed(0)
    batch = LABELLED + UNLABELLED
    probs = (2 * torch.randn(batch, CLASSES, SIDE, SIDE, generator=generator)).softmax(1)
    labels = probs.argmax(1)
    unreliable = torch.rand(UNLABELLED, SIDE, SIDE, generator=generator) < 0.2
    own, known = contrast.members(labels, CLASSES), labels != IGNORE
    anchors = own & (probs > 0.3)
    anchors[LABELLED:] &= ~unreliable[:, None]
    negatives = torch.cat(
        [
            contrast.labelled_negatives(probs[:LABELLED], own[:LABELLED], known[:LABELLED], r_low=3),
            contrast.unlabelled_negatives(probs[LABELLED:], unreliable, r_low=3, r_high=20),
        ]
    )
    student, teacher = torch.randn(2, batch, CHANNELS, SIDE, SIDE, generator=generator)
    return student.requires_grad_(), teacher, anchors, negatives


def steps() -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The contrastive step with its backward pass, ours and the plain one, with full banks."""
    student, *rest = scene()
    bank, plain = MemoryBank(CAPACITIES, CHANNELS), PlainContrast()
    generator = torch.Generator().manual_seed(0)
    settings: dict[str, Any] = {"n_anchors": ANCHORS, "n_negatives": NEGATIVES, "tau": TAU, "generator": generator}

    def suite() -> Tensor:
        loss = contrast.contrastive_loss(student, *rest, bank, **settings)
        loss.backward()
        student.grad = None  # at the end: its memory belongs to the step
        return loss.detach()

    def straight_line() -> Tensor:
        loss = plain(student, *rest)
        loss.backward()
        student.grad = None  # at the end: its memory belongs to the step
        return loss.detach()

    for _ in range(12):  # fill both banks: most of a training runs with full ones
        bank.push(rest[0].permute(0, 2, 3, 1).flatten(0, 2), rest[2].transpose(0, 1).flatten(1))
    for c in range(CLASSES):
        plain.bank[c] = bank.held(c).clone()
    assert min(bank.count[1:]) == 30000
    torch.testing.assert_close(suite(), straight_line(), rtol=0.01, atol=0)
    return suite, straight_line


@pytest.mark.benchmark(group="contrast")
def test_contrastive_step(compare_time: Any) -> None:
    compare_time(*steps(), rounds=5, limit=0.35)


@pytest.mark.benchmark(group="memory")
def test_contrastive_step_memory(compare_memory: Any) -> None:
    compare_memory(*steps())


@pytest.mark.benchmark(group="contrast")
def test_bank_update(compare_time: Any) -> None:
    _, teacher, _, negatives = scene()
    bank, plain = MemoryBank(CAPACITIES, CHANNELS), PlainContrast()
    pixels, qualified = teacher.permute(0, 2, 3, 1), negatives.transpose(0, 1).flatten(1)

    def suite() -> None:
        bank.push(pixels.flatten(0, 2), qualified)

    def straight_line() -> None:
        plain.push(F.normalize(pixels, dim=-1), negatives)

    for _ in range(10):
        suite()
        straight_line()
    for c in range(CLASSES):
        torch.testing.assert_close(bank.held(c), plain.bank[c])
    compare_time(suite, straight_line)


@pytest.mark.benchmark(group="pseudo-labels")
def test_entropy_partition(compare_time: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    probs = (3 * torch.randn(UNLABELLED, CLASSES, CROP, CROP, generator=generator)).softmax(1)
    labels = probs.argmax(1)

    def suite() -> Tensor:
        entropies = entropy(probs)
        return drop_unreliable(labels, entropies, entropy_threshold(entropies, 0.2), IGNORE)

    def straight_line() -> np.ndarray:
        p = probs.numpy()
        entropies = -(p * np.log(p + 1e-10)).sum(axis=1)
        reliable = labels.numpy().copy()
        reliable[entropies >= np.percentile(entropies.flatten(), 80)] = IGNORE
        return reliable

    # Rounding moves the few pixels at the very threshold.
    assert (suite().numpy() != straight_line()).mean() < 1e-4
    assert (straight_line() == IGNORE).mean() == pytest.approx(0.2, abs=1e-3)
    compare_time(suite, straight_line, rounds=21)


@pytest.mark.benchmark(group="mixing")
def test_mixing(compare_time: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, CROP, CROP, generator=generator)
    labels = torch.randint(CLASSES, (8, CROP, CROP), generator=generator)
    boxes = cutmix_boxes(8, CROP, CROP, probability=1.0, generator=generator, device="cpu")
    corners = [(rows.any(1).nonzero(), rows.any(0).nonzero()) for rows in boxes]
    edges = [(int(y[0]), int(y[-1]) + 1, int(x[0]), int(x[-1]) + 1) for y, x in corners]

    def suite() -> tuple[Tensor, Tensor]:
        return cutmix(images, boxes, 4), cutmix(labels, boxes, 4)

    def straight_line() -> tuple[Tensor, Tensor]:
        mixed = images.clone(), labels.clone()
        for i, (j, (top, bottom, left, right)) in enumerate(zip(partners(8, 4), edges, strict=True)):
            for values, out in zip((images, labels), mixed, strict=True):
                out[i, ..., top:bottom, left:right] = values[j, ..., top:bottom, left:right]
        return mixed

    for ours, plain in zip(suite(), straight_line(), strict=True):
        assert torch.equal(ours, plain)
    compare_time(suite, straight_line, rounds=75)
