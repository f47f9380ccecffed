"""Between the size of the images and that of the network's output."""

import torch
import torch.nn.functional as F
from torch import Tensor

from u2pl.components.precision import at_least_float32


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear to `size` (H, W) with aligned corners, in float32 whatever the autocast type."""
    return F.interpolate(at_least_float32(logits), size=size, mode="bilinear", align_corners=True)


def nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W) of any type to (B, *size) by nearest neighbour, as `F.interpolate(mode="nearest")` does for floats."""
    rows, columns = (
        torch.arange(new, device=values.device) * old // new for new, old in zip(size, values.shape[1:], strict=True)
    )
    return values[:, rows[:, None], columns]
