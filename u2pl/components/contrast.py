"""The contrastive loss on unreliable pixels: Eq. 4 and 9 to 16, and lines 6 to 15 of Algorithm 1."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from u2pl.components.memory_bank import MemoryBank
from u2pl.components.precision import at_least_float32
from u2pl.ranks.collectives import STREAMS, all_gather, all_reduce_sum, locate, rank


def category_order(probs: Tensor) -> Tensor:
    """O_ij: the rank of each class at each pixel, 0 for the most probable. `probs` (B, C, h, w) -> int64 same shape.

    Equal probabilities rank in class order.
    """
    order = probs.argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(probs.shape[1], device=probs.device).view(1, -1, 1, 1).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, ranks)


def members(labels: Tensor, n_classes: int) -> Tensor:
    """bool (B, C, h, w), True where the label of `labels` (B, h, w) is c; nowhere for the ignore label."""
    return labels[:, None] == torch.arange(n_classes, device=labels.device).view(1, -1, 1, 1)


def anchor_pixels(probs: Tensor, labels: Tensor, delta_p: float) -> Tensor:
    """Eq. 9 and 10: bool (B, C, h, w), True where the label is c and p(c) > delta_p.

    `probs` (B, C, h, w) are the teacher's, `labels` (B, h, w) the ground truth or the pseudo-labels of Eq. 6. A label
    outside 0 to C - 1 (the ignore label) makes no anchor.
    """
    return members(labels, probs.shape[1]) & (probs > delta_p)


def labelled_negatives(probs: Tensor, labels: Tensor, ignore: int, *, r_low: int) -> Tensor:
    """Eq. 14: bool (B, C, h, w), True where y != c and c is among the r_low most probable classes.

    Pixels labelled `ignore` are negatives of no class: their true class may be any.
    """
    confusable = category_order(probs) < r_low
    return confusable & ~members(labels, probs.shape[1]) & (labels != ignore)[:, None]


def unlabelled_negatives(probs: Tensor, selected: Tensor, *, r_low: int, r_high: int) -> Tensor:
    """Eq. 15: bool (B, C, h, w), True where the pixel is selected and r_low <= O(c) < r_high.

    `selected` bool (B, h, w) is H > gamma_t in the paper; Table 4 replaces it (see `entropy_condition`).
    """
    order = category_order(probs)
    return selected[:, None] & (order >= r_low) & (order < r_high)


def entropy_condition(entropies: Tensor, gamma_t: Tensor, low: Tensor, negatives: str) -> Tensor:
    """The pixels Eq. 15 draws from, bool like `entropies`; the three rows of Table 4.

    unreliable: H > gamma_t (the paper's method); reliable: H < `low`, the percentile 100 * alpha_t; all: every pixel.
    Raises ValueError for any other name.
    """
    match negatives:
        case "unreliable":
            return entropies > gamma_t
        case "reliable":
            return entropies < low
        case "all":
            return torch.ones_like(entropies, dtype=torch.bool)
    raise ValueError(f"negatives {negatives!r}: expected unreliable, reliable or all")


def positives(teacher: Tensor, anchors: Tensor) -> Tensor:
    """Eq. 12: the mean teacher representation of A_c for each class, (C, D); zeros where A_c is empty.

    `teacher` is (B, D, h, w), `anchors` bool (B, C, h, w): A_c, or what a reading takes in its place. The mean is over
    the images of all ranks.
    """
    weights = anchors.flatten(2).to(teacher.dtype)
    totals = all_reduce_sum(torch.bmm(weights, teacher.flatten(2).transpose(1, 2)).sum(0))
    return totals / all_reduce_sum(weights.sum(dim=(0, 2))).clamp(min=1)[:, None]


def sample_pixels(qualified: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """`n` pixels of each row of `qualified` (C, pixels), uniform with replacement: int64 (C, n).

    A row without a qualified pixel gives pixel indices in range that mean nothing. The k-th qualified pixel is found
    by bisection in the running count: no index list of unknown length, hence no wait for the device.
    """
    running = qualified.cumsum(dim=1)
    count = running[:, -1:]
    draws = torch.rand(len(qualified), n, generator=generator, device=qualified.device)
    wanted = torch.minimum((draws * count).long() + 1, count)
    return torch.searchsorted(running, wanted).clamp(max=qualified.shape[1] - 1)


class _Cosines(torch.autograd.Function):
    """Dot products of each anchor with its own sampled keys, without keeping the keys.

    Gathered keys are M * N * C vectors (275 MB at the published sizes). They are read class by class, and read again
    in backward: that is faster than writing them out once.
    """

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, keys: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(keys, index)
        return torch.stack([_dots(a, keys, i) for a, i in zip(anchors, index, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        keys, index = ctx.saved_tensors
        # sum_j g_mj * key_mj for each anchor m in one fused pass
        flat = F.embedding_bag(
            index.flatten(0, 1), keys, mode="sum", per_sample_weights=grads[0].flatten(0, 1).contiguous()
        )
        return flat.view(*index.shape[:2], -1), None, None


def _dots(anchors: Tensor, keys: Tensor, index: Tensor) -> Tensor:
    gathered = keys.index_select(0, index.flatten()).view(*index.shape, -1)
    return torch.bmm(gathered, anchors[:, :, None])[:, :, 0]


def info_nce(anchors: Tensor, positive: Tensor, keys: Tensor, index: Tensor, tau: float) -> Tensor:
    """The terms of Eq. 4, before the mean: (C, M).

    `anchors` (C, M, D) and `positive` (C, D) of any length; `keys` (K, D) of length 1; `index` int64 (C, M, N) rows of
    `keys`, the negatives of each anchor. Gradients reach `anchors` only through the cosines.
    """
    unit = F.normalize(anchors, dim=-1)
    to_positive = (unit * F.normalize(positive, dim=-1)[:, None]).sum(-1, keepdim=True) / tau
    to_negatives = _Cosines.apply(unit, keys, index) / tau
    return torch.cat([to_positive, to_negatives], dim=-1).logsumexp(-1) - to_positive[..., 0]


@dataclass(frozen=True)
class Samples:
    """The anchors and negatives of one step: lines 8 and 12 of Algorithm 1."""

    anchors: Tensor  # int64 (C, M): pixels, counted over (B, h, w) of all ranks
    keys: Tensor  # int64 (C, M, N): rows of the bank's keys, for each anchor
    valid: Tensor  # bool (C,): False where there is no anchor or no negative, and the rest of the row means nothing


@torch.no_grad()
def sample(
    anchors: Tensor,
    bank: MemoryBank,
    banks: Tensor | None,
    n_anchors: int,
    n_negatives: int,
    generator: torch.Generator,
) -> Samples:
    """M of `anchors` (B, C, h, w) of each class and N vectors of its bank for each, uniform with replacement.

    Every rank gives the `anchors` of all and an equal generator, and so draws the same. `banks` int64 (C,) is the class
    whose bank the class's anchors meet, -1 for none; None: their own.
    """
    candidates = anchors.transpose(0, 1).flatten(1)
    picked = sample_pixels(candidates, n_anchors, generator)
    keys, filled = bank.sample((n_anchors, n_negatives), generator), bank.count > 0
    if banks is not None:
        keys, filled = keys[banks], filled[banks] & (banks >= 0)
    return Samples(picked, keys, candidates.any(dim=1) & filled)


def class_losses(student: Tensor, positive: Tensor, keys: Tensor, samples: Samples, tau: float) -> Tensor:
    """The inner sum of Eq. 4 over M for each class, (C,): the mean over its anchors, 0 where the samples are not valid.

    `student` (B, D, h, w) holds the anchors, `positive` (C, D) the result of Eq. 12, `keys` those of the bank. A rank
    counts the anchors in its own images; the sum over the ranks is the whole.
    """
    area = student.shape[2] * student.shape[3]
    owner, image = locate(samples.anchors // area, len(student))
    vectors = at_least_float32(student.flatten(2)[image, :, samples.anchors % area])
    terms = torch.where(owner == rank(), info_nce(vectors, positive, keys, samples.keys, tau), 0.0)
    return torch.where(samples.valid, terms.mean(dim=1), 0.0)


def contrastive_loss(
    student: Tensor,
    teacher: Tensor,
    anchors: Tensor,
    negatives: Tensor,
    bank: MemoryBank,
    *,
    n_anchors: int,
    n_negatives: int,
    tau: float,
    generator: torch.Generator,
    centred: Tensor | None = None,
    banks: Tensor | None = None,
    n_classes: Tensor | None = None,
) -> Tensor:
    """Lines 6 to 15 of Algorithm 1: update the bank, sample, and return L_c of Eq. 4, a scalar.

    `student` and `teacher` are representations (B, D, h, w) of the same images, labelled first; `anchors` (Eq. 11) and
    `negatives` (Eq. 16) are bool (B, C, h, w). Anchors are student vectors; positives and negatives are the
    teacher's and carry no gradient. The bank takes this batch's negatives before it is sampled. A class without
    anchors or with an empty bank adds 0, and the mean is over all C * M terms. The images are one rank's; the bank, the
    samples and the loss are those of the global batch.

    The released reading replaces three things: `centred`, the pixels that z+ is the mean of (None: A_c); `banks`, the
    bank of each class's anchors (None: its own; see `sample`); and `n_classes`, a scalar to divide by instead of C.
    """
    with torch.autocast(student.device.type, enabled=False):  # cosines of half-precision vectors lose the ranking
        teacher = at_least_float32(teacher.detach())
        qualified = all_gather(negatives, STREAMS).transpose(0, 1).flatten(1)
        bank.push(teacher.permute(0, 2, 3, 1).flatten(0, 2), qualified)
        samples = sample(all_gather(anchors, STREAMS), bank, banks, n_anchors, n_negatives, generator)
        positive = positives(teacher, anchors if centred is None else centred)
        losses = class_losses(student, positive, bank.keys, samples, tau)
        return all_reduce_sum(losses.sum()) / (len(losses) if n_classes is None else n_classes.clamp(min=1))
