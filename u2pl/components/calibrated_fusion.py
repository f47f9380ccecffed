"""One soft pseudo-label from two predictions of different scale (PseudoSeg), and the loss against it."""

from typing import Literal

import torch
from torch import Tensor

from u2pl.components.groups import extent, group_mean, group_sums, of_images
from u2pl.components.precision import at_least_float32

Normaliser = Literal["root_mean_square", "root_sum_square"]
Region = Literal["batch", "share", "image", "pixel"]


def calibrated_fusion(
    first: Tensor,
    other: Tensor,
    *,
    weight: float,
    temperature: float,
    normaliser: Normaliser,
    over: Region,
    share: int,
) -> Tensor:
    """Sharpen(weight * softmax(first / N) + (1 - weight) * softmax(other / N)), without gradients: (B, C, h, w).

    `first` and `other` are logits (B, C, h, w). N is the root of the mean, or of the sum, of the squares of both: over
    the batch of all ranks, shares of so many images, images, or pixels. Sharpen(p) = p^(1/T) / sum_c p_c^(1/T).
    """
    with torch.no_grad():
        first, other = at_least_float32(first), at_least_float32(other)
        squares = (first.square() + other.square()).sum(dim=1)  # (B, h, w)
        count = 2 * first.shape[1]
        if over != "pixel":
            images, area = len(first), squares[0].numel()
            group = extent(over, share, images)
            per_image = squares.sum((1, 2))
            squares = of_images(group_sums(per_image, group), images, group)
            members = group_sums(torch.ones_like(per_image), group)  # the last share may be incomplete
            norm = of_images(members, images, group) * area * count
        else:
            norm = torch.full_like(squares, count)
        scale = (squares / norm if normaliser == "root_mean_square" else squares).add(1e-8).rsqrt()[:, None]
        fused = weight * (first * scale).softmax(dim=1) + (1 - weight) * (other * scale).softmax(dim=1)
        sharp = fused.pow(1 / temperature)
        return sharp / sharp.sum(dim=1, keepdim=True)


def soft_cross_entropy(logits: Tensor, target: Tensor, counted: Tensor, group: int | None = None) -> Tensor:
    """Mean of - sum_c target_c log softmax(logits)_c over the pixels that are `counted`, a scalar.

    logits and target, probabilities: (B, C, h, w); counted: bool (B, h, w). Of each `group` as in `supervised_loss`.
    """
    losses = -(target * at_least_float32(logits).log_softmax(dim=1)).sum(dim=1)
    return group_mean(torch.where(counted, losses, 0).flatten(1), counted, group)
