"""What AEL's class confidences decide: classes to draw, pixels to keep, weights (Hu et al., NeurIPS 2021, Sec. 3)."""

import torch
from torch import Tensor

from u2pl.components.groups import group_sums
from u2pl.components.pseudo_labels import pixel_losses
from u2pl.ranks.collectives import share, world_size

# Of Cityscapes: road, sidewalk, building, vegetation and sky. The released code leaves out the same numbers on VOC.
RELEASED_LEAVES_OUT = (0, 1, 2, 8, 10)


def batch_confidence(logits: Tensor, masks: Tensor, ignore: int, size: int, absent: str) -> tuple[Tensor, Tensor]:
    """Eq. 4: the mean probability of each class at its own pixels, (C,), and the classes that have one, bool (C,).

    logits (B, C, H, W), masks (B, H, W): one rank's; both results are of all ranks. The mean is over the pixels of each
    group of `size` images, then over the groups that have the class (`absent` "skip") or over all of them, where a
    group without it counts as 0 ("zero"; then every class has one). ValueError for another `absent`.
    """
    if absent not in ("skip", "zero"):
        raise ValueError(f"absent {absent!r}: expected skip or zero")
    right = pixel_losses(logits.detach(), masks, ignore).neg().exp()
    own = [masks.flatten(1) == c for c in range(logits.shape[1])]  # one by one: (B, C, H, W) is as large as the logits
    totals = group_sums(torch.stack([torch.where(c, right, 0.0).sum(1) for c in own], dim=1), size)
    counts = group_sums(torch.stack([c.sum(1) for c in own], dim=1), size)
    present = counts > 0
    means, groups = totals / counts.clamp(min=1), present.sum(0)
    if absent == "zero":
        return means.mean(0), torch.ones_like(groups, dtype=torch.bool)
    return means.sum(0) / groups.clamp(min=1), groups > 0


def class_rates(confidence: Tensor, classes: str = "all") -> Tensor:
    """Eq. 9, not normalised: exp(1 - Conf) of each class, float64 (C,).

    With `classes` "released": exp(sqrt(1 - Conf)), 0 for the classes in `RELEASED_LEAVES_OUT`.
    """
    gap = (1 - confidence).clamp(min=0).double()
    if classes == "all":
        return gap.exp()
    numbers = torch.arange(len(gap), device=gap.device)
    left_out = sum((numbers == c for c in RELEASED_LEAVES_OUT), torch.zeros_like(numbers, dtype=torch.bool))
    return torch.where(left_out, 0.0, gap.sqrt().exp())


def draw_classes(rates: Tensor, draws: Tensor) -> Tensor:
    """A class for each of `draws` (...), uniform in [0, 1), by the rates (C,): int64 (...); C where no rate is > 0."""
    # a sum over a mask, since running sums of floats have no fixed order on GPUs
    numbers = torch.arange(len(rates), device=rates.device)
    bounds = torch.where(numbers <= numbers[:, None], rates, 0.0).sum(dim=1)
    return (bounds <= draws.double()[..., None] * bounds[-1]).sum(dim=-1)


def pixel_rates(confidence: Tensor, beta: float) -> Tensor:
    """Eq. 10: s^c = [(1 - Conf^c) / max_c (1 - Conf^c)]^beta, (C,); 1 for the least confident class."""
    gap = (1 - confidence).clamp(min=0)
    return (gap / gap.max().clamp(min=1e-12)) ** beta


def kept_pixels(classes: Tensor, rates: Tensor, generator: torch.Generator) -> Tensor:
    """bool like `classes` int64 (B, H, W), of one rank: each pixel with the rate (C,) of its class."""
    shape = len(classes) * world_size(), *classes.shape[1:]
    return share(torch.rand(shape, generator=generator, device=classes.device)) < rates[classes]


def weighted_mean(losses: Tensor, weights: Tensor, size: int) -> Tensor:
    """Eq. 12: the mean over groups of sum(w * loss) / sum(w), a scalar; both are (B, pixels), of one rank.

    Groups are of `size` images, over all ranks. One without weight adds 0.
    """
    products, totals = group_sums((weights * losses).sum(dim=1), size), group_sums(weights.sum(dim=1), size)
    return torch.where(totals > 0, products / totals.clamp(min=torch.finfo(totals.dtype).tiny), 0.0).mean()


def held_classes(labels: Tensor, n_classes: int, ratio: float) -> Tensor:
    """The classes that have at least `ratio` of the pixels of each image of `labels` (B, H, W): bool (B, C).

    Of a class without a pixel never.
    """
    counts = torch.stack([(labels == c).sum((1, 2)) for c in range(n_classes)], dim=1)
    return (counts >= ratio * labels[0].numel()) & (counts > 0)
