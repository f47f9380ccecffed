"""CutMix of unlabelled images and of what belongs to them."""

import math

import torch
from torch import Tensor

GROUP = 4  # images that mix with each other: the share of one GPU in the released code, whatever the number of GPUs here


def cutmix_boxes(
    batch: int, height: int, width: int, *, probability: float, generator: torch.Generator, device: torch.device | str
) -> Tensor:
    """One box of half the area for each image: bool (B, H, W), True where the partner's pixels go.

    The height is log-uniform in [H/2, H] and the width follows from the area, both rounded to pixels; the place is
    uniform. With `1 - probability` the whole batch stays unmixed (all False). Everything is drawn from `generator` on
    `device`, without a copy to the host.
    """
    draws = torch.rand(3, batch, generator=generator, device=device)
    mix = torch.rand((), generator=generator, device=device) < probability
    box_height = torch.exp(draws[0] * math.log(0.5)).mul(height).ceil().clamp(max=height)
    box_width = (height * width / 2 / box_height).round().clamp(1, width)
    top = (draws[1] * (height - box_height + 1)).floor()
    left = (draws[2] * (width - box_width + 1)).floor()
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    rows = (y >= top[:, None]) & (y < (top + box_height)[:, None])
    columns = (x >= left[:, None]) & (x < (left + box_width)[:, None])
    return rows[:, :, None] & columns[:, None, :] & mix


def partners(batch: int) -> list[int]:
    """The image each of `batch` images takes pixels from: the next in its group of four, the last one's is the first.

    A last, incomplete group is a ring of its own; an image alone in it is its own partner.
    """
    groups = [range(start, min(start + GROUP, batch)) for start in range(0, batch, GROUP)]
    return [group[(i + 1) % len(group)] for group in groups for i in range(len(group))]


def cutmix(values: Tensor, boxes: Tensor) -> Tensor:
    """Each image with the pixels of its partner (see `partners`) inside its box.

    `values` is (B, H, W) or (B, K, H, W), `boxes` bool (B, H, W). The same boxes mix images and their pseudo-labels.
    """
    inside = boxes if values.ndim == 3 else boxes[:, None]
    # Rows one by one: an index tensor would have to travel to the device.
    return torch.where(inside, torch.stack([values[i] for i in partners(len(values))]), values)
