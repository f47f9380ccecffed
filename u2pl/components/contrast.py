"""The contrastive loss on unreliable pixels: Eq. 4 and 9 to 16, and lines 6 to 15 of Algorithm 1."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from u2pl.components.groups import both_streams, group_sums
from u2pl.components.memory_bank import MemoryBank
from u2pl.components.precision import at_least_float32
from u2pl.ranks.collectives import STREAMS, all_gather, all_reduce_sum, locate, rank, world_size


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


def labelled_negatives(probs: Tensor, own: Tensor, known: Tensor, *, r_low: int) -> Tensor:
    """Eq. 14: bool (B, C, h, w), True where y != c and c is among the r_low most probable classes.

    `own` (B, C, h, w) is True where y = c, `known` (B, h, w) where the pixel may be a negative at all: one labelled
    `ignore` is of no known class, and may be of any.
    """
    return (category_order(probs) < r_low) & ~own & known[:, None]


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


def positives(teacher: Tensor, anchors: Tensor, group: int) -> Tensor:
    """Eq. 12: the mean teacher representation of A_c for each class and group, (G, C, D); zeros where A_c is empty.

    `teacher` is (2B, D, h, w), labelled images first, `anchors` bool (2B, C, h, w): A_c, or what a reading takes in its
    place. The mean is over the images of each `group` of so many per stream, of all ranks.
    """
    weights = anchors.flatten(2).to(teacher.dtype)
    totals = torch.bmm(weights, teacher.flatten(2).transpose(1, 2))
    return _of_groups(totals, group) / _of_groups(weights.sum(dim=2), group).clamp(min=1)[..., None]


def _of_groups(values: Tensor, group: int) -> Tensor:
    """Sums over the images (2B, ...) of each group: (G, ...)."""
    labelled, unlabelled = values.chunk(2)
    return group_sums(labelled + unlabelled, group)


def presence(members: Tensor, group: int) -> Tensor:
    """The classes that a pixel of each group is a member of: bool (G, C) for bool `members` (2B, C, h, w)."""
    return _of_groups(members.any(dim=(2, 3)).int(), group) > 0


def uniform(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Uniform in [0, 1): every random choice of the term."""
    return torch.rand(shape, generator=generator, device=device)


def choose(count: Tensor, draws: Tensor, *, replacement: bool = True) -> Tensor:
    """n of `count` (...) things for each row of `draws` (..., n), uniform in [0, 1): int64 (..., n), each below count.

    Without replacement by Floyd's algorithm; a row with fewer than n things is drawn with it all the same. Where
    `count` is 0 the numbers mean nothing.
    """
    # draws * count can round up to count
    places = torch.minimum((draws * count[..., None]).long(), (count[..., None] - 1).clamp(min=0))
    if replacement:
        return places
    n, distinct = draws.shape[-1], torch.full_like(places, -1)
    for k in range(n):
        last = count - n + k
        place = torch.minimum((draws[..., k] * (last + 1)).long(), last)
        taken = (distinct[..., :k] == place[..., None]).any(dim=-1)
        distinct[..., k] = torch.where(taken, last, place)
    return torch.where(count[..., None] >= n, distinct, places)


def sample_pixels(qualified: Tensor, draws: Tensor, *, replacement: bool = True) -> Tensor:
    """Pixels of each row of `qualified` (C, pixels) for `draws` (C, n), see `choose`: int64 (C, n).

    A row without a qualified pixel gives pixel indices in range that mean nothing. The k-th qualified pixel is found
    by bisection in the running count: no index list of unknown length, hence no wait for the device.
    """
    running = qualified.cumsum(dim=1)
    wanted = choose(running[:, -1], draws, replacement=replacement) + 1
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
    """The anchors and negatives of one step: lines 8 and 12 of Algorithm 1, for each of G groups."""

    anchors: Tensor  # int64 (G, C, M): pixels, counted over (2B, h, w) of all ranks
    keys: Tensor  # int64 (G, C, M, N): rows of the bank's keys, for each anchor
    valid: Tensor  # bool (G, C): False where there is no anchor or no negative, and the rest of the row means nothing


@torch.no_grad()
def sample(
    anchors: Tensor,
    groups: list[Tensor],
    bank: MemoryBank,
    banks: Tensor | None,
    n_anchors: int,
    n_negatives: int,
    generator: torch.Generator,
    *,
    replacement: bool = True,
) -> Samples:
    """M of each group's `anchors` of each class, and N vectors of its bank for each; uniform.

    `anchors` (2B, C, h, w) are those of all ranks, `groups` the images of each group; with an equal generator all ranks
    draw the same. `banks` int64 (G, C) is the class whose bank the class's anchors meet, -1 for none; None: their own.
    """
    n_classes, area = anchors.shape[1], anchors.shape[2] * anchors.shape[3]
    shape = len(groups), n_classes, n_anchors
    draws = uniform(shape, generator, anchors.device)
    pixels, found = [], []
    for images, own in zip(groups, draws, strict=True):
        candidates = anchors[images].transpose(0, 1).flatten(1)
        picked = sample_pixels(candidates, own, replacement=replacement)
        pixels.append(images[picked // area] * area + picked % area)
        found.append(candidates.any(dim=1))
    draws = uniform((*shape, n_negatives), generator, anchors.device)
    classes = torch.arange(n_classes, device=anchors.device)
    places = choose(bank.count[:, None].expand(shape), draws, replacement=replacement)
    keys, filled = bank.rows(classes[:, None, None], places), (bank.count > 0).expand(shape[:2])
    if banks is not None:
        group = torch.arange(len(groups), device=banks.device)[:, None]
        keys, filled = keys[group, banks], filled[group, banks] & (banks >= 0)
    return Samples(torch.stack(pixels), keys, torch.stack(found) & filled)


def class_losses(student: Tensor, positive: Tensor, keys: Tensor, samples: Samples, tau: float) -> Tensor:
    """The inner sum of Eq. 4 over M for each group and class, (G, C): the mean over the anchors, 0 where not valid.

    `student` (2B, D, h, w) holds the anchors, `positive` (G, C, D) the result of Eq. 12, `keys` those of the bank. A
    rank counts the anchors in its own images; the sum over the ranks is the whole.
    """
    area, anchors = student.shape[2] * student.shape[3], samples.anchors.flatten(0, 1)
    owner, image = locate(anchors // area, len(student))
    vectors = at_least_float32(student.flatten(2)[image, :, anchors % area])
    terms = info_nce(vectors, positive.flatten(0, 1), keys, samples.keys.flatten(0, 1), tau)
    means = torch.where(owner == rank(), terms, 0.0).mean(dim=1).view(samples.valid.shape)
    return torch.where(samples.valid, means, 0.0)


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
    group: int | None = None,
    replacement: bool = True,
    centred: Tensor | None = None,
    banks: Tensor | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """Lines 6 to 15 of Algorithm 1: update the bank, sample, and return L_c of Eq. 4, a scalar.

    `student` and `teacher` are representations (2B, D, h, w) of the same images, labelled first; `anchors` (Eq. 11) and
    `negatives` (Eq. 16) are bool (2B, C, h, w). Anchors are student vectors; positives and negatives are the
    teacher's and carry no gradient. The bank takes this batch's negatives before it is sampled. A class without
    anchors or with an empty bank adds 0, and the mean is over all C * M terms. The images are one rank's; the bank, the
    samples and the loss are those of the global batch. With a `group` of so many images per stream the term is computed
    for each group, and averaged; the bank is common, and takes what the groups give one after the other.

    The released reading replaces three things: `centred`, the pixels that z+ is the mean of (None: A_c); `banks`
    (G, C), the bank of each class's anchors (None: its own; see `sample`); and `present` bool (G, C), whose number is
    divided by instead of C, and with a single class the group adds 0.
    """
    with torch.autocast(student.device.type, enabled=False):  # cosines of half-precision vectors lose the ranking
        teacher = at_least_float32(teacher.detach())
        images = len(student) // STREAMS
        group = group or images * world_size()
        groups = both_streams(images, group, student.device)
        order, area = torch.cat(groups), student.shape[2] * student.shape[3]
        places = (order[:, None] * area + torch.arange(area, device=order.device)).flatten()
        qualified = all_gather(negatives, STREAMS)[order].transpose(0, 1).flatten(1)
        bank.push(teacher.permute(0, 2, 3, 1).flatten(0, 2), qualified, places)
        everywhere = all_gather(anchors, STREAMS)
        samples = sample(everywhere, groups, bank, banks, n_anchors, n_negatives, generator, replacement=replacement)
        positive = positives(teacher, anchors if centred is None else centred, group)
        losses = class_losses(student, positive, bank.keys, samples, tau)
        if present is None:
            return all_reduce_sum(losses.mean())
        number = present.sum(dim=1)
        return all_reduce_sum(torch.where(number > 1, losses.sum(dim=1) / number.clamp(min=1), 0.0).mean())
