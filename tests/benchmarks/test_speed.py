"""Speed as a ratio to the plain way of doing the same, both timed in turns in one process."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from u2pl.components import contrast
from u2pl.components.memory_bank import MemoryBank

torch.set_num_threads(1)  # threads waiting for a busy core make timings of short operations meaningless
LABELLED, UNLABELLED, CLASSES, CHANNELS, SIDE = 4, 4, 21, 256, 65
ANCHORS, NEGATIVES, TAU = 50, 256, 0.5
CAPACITIES = [50000] + [30000] * (CLASSES - 1)


def ratio(new: Callable[[], Any], plain: Callable[[], Any], rounds: int) -> float:
    """Median time of `new` over that of `plain`; taking turns exposes both to the same load of the machine."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for function, seconds in zip((new, plain), times, strict=True):
            begin = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - begin)
    return statistics.median(times[0]) / statistics.median(times[1])


class PlainContrast:
    """Algorithm 1 class by class with boolean indexing and a bank of concatenated tensors."""

    def __init__(self) -> None:
        self.bank = [torch.zeros(0, CHANNELS) for _ in range(CLASSES)]

    def __call__(self, student: Tensor, teacher: Tensor, anchors: Tensor, negatives: Tensor) -> Tensor:
        student = student.permute(0, 2, 3, 1)
        teacher = teacher.permute(0, 2, 3, 1)
        loss = torch.zeros(())
        for c in range(CLASSES):
            self.bank[c] = torch.cat([self.bank[c], teacher[negatives[:, c]]])[-CAPACITIES[c] :]
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
    anchors = contrast.anchor_pixels(probs, labels, 0.3)
    anchors[LABELLED:] &= ~unreliable[:, None]
    negatives = torch.cat(
        [
            contrast.labelled_negatives(probs[:LABELLED], labels[:LABELLED], 255, r_low=3),
            contrast.unlabelled_negatives(probs[LABELLED:], unreliable, r_low=3, r_high=20),
        ]
    )
    student, teacher = torch.randn(2, batch, CHANNELS, SIDE, SIDE, generator=generator)
    return student.requires_grad_(), teacher, anchors, negatives


@pytest.mark.benchmark(group="contrast")
def test_contrastive_step(benchmark: Any) -> None:
    student, *rest = scene()
    bank, plain = MemoryBank(CAPACITIES, CHANNELS), PlainContrast()
    generator = torch.Generator().manual_seed(0)
    settings: dict[str, Any] = {"n_anchors": ANCHORS, "n_negatives": NEGATIVES, "tau": TAU, "generator": generator}

    def suite() -> Tensor:
        loss = contrast.contrastive_loss(student, *rest, bank, **settings)
        loss.backward()
        return loss.detach()

    def straight_line() -> Tensor:
        loss = plain(student, *rest)
        loss.backward()
        return loss.detach()

    for _ in range(12):  # fill both banks: most of a training runs with full ones
        bank.push(rest[0].permute(0, 2, 3, 1).flatten(0, 2), rest[2].transpose(0, 1).flatten(1))
    for c in range(CLASSES):
        plain.bank[c] = bank.held(c).clone()
    assert min(bank.count[1:]) == 30000
    torch.testing.assert_close(suite(), straight_line(), rtol=0.01, atol=0)
    found = benchmark.pedantic(ratio, args=(suite, straight_line, 5), rounds=1)
    benchmark.extra_info["ratio"] = found
    assert found <= 0.35, f"{found:.2f}"


@pytest.mark.benchmark(group="evaluation")
def test_confusion_matrix(benchmark: Any) -> None:
    evaluate = pytest.importorskip("u2pl.engine.evaluate")
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(CLASSES, (4, 513, 513), generator=generator)
    pred = torch.where(torch.rand(target.shape, generator=generator) < 0.8, target, target.flip(2))
    target[:, :20] = 255

    def straight_line() -> np.ndarray:
        truth, guess = target.numpy().ravel(), pred.numpy().ravel()
        kept = truth != 255
        edges = np.arange(CLASSES + 1)
        return np.histogram2d(truth[kept], guess[kept], bins=(edges, edges))[0]

    def suite() -> Tensor:
        return evaluate.confusion_matrix(pred, target, CLASSES, 255)

    np.testing.assert_array_equal(np.asarray(suite()), straight_line())
    found = benchmark.pedantic(ratio, args=(suite, straight_line, 5), rounds=1)
    benchmark.extra_info["ratio"] = found
    assert found <= 0.2, f"{found:.2f}"
