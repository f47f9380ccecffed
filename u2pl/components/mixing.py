"""CutMix of unlabelled images and of what belongs to them."""

import math

import torch
from torch import Tensor

from u2pl.ranks.collectives import all_gather, rank, share, world_size

# Images that mix with each other: the share of a GPU in the released code, here whatever the number of GPUs.
GROUP = 4


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


def boxes_for(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """`cutmix_boxes` for one rank's images (B, 3, H, W), drawn for the global batch: bool (B, H, W)."""
    size = (len(images) * world_size(), images.shape[2], images.shape[3])
    return share(cutmix_boxes(*size, probability=probability, generator=generator, device=images.device))


def three_boxes_for(images: Tensor, generator: torch.Generator) -> Tensor:
    """`toggling_boxes`, three per image, for one rank's images (B, 3, H, W), drawn for the global batch."""
    size = (len(images) * world_size(), images.shape[2], images.shape[3])
    return share(toggling_boxes(*size, count=3, generator=generator, device=images.device))


def toggling_boxes(
    batch: int, height: int, width: int, *, count: int, generator: torch.Generator, device: torch.device | str
) -> Tensor:
    """Masks of CPS with CutMix: bool (B, H, W), True where another image's pixels go.

    Each of an image's `count` boxes draws a share q, uniform in [1/4, 1/2], and covers q / count of the image: its
    height is sqrt(1 / count) of a share of H that is log-uniform in [q, 1], its width follows, both rounded to pixels;
    its place is uniform. A box toggles what it covers, so that two boxes leave their common part as it was.
    """
    draws = torch.rand(4, batch, count, generator=generator, device=device)
    share_of_image = 0.25 + 0.25 * draws[0]
    tall = torch.exp(draws[1] * share_of_image.log())
    side = math.sqrt(1 / count)
    box_height, box_width = (tall * side * height).round(), (share_of_image / tall * side * width).round()
    top, left = (draws[2] * (height - box_height)).round(), (draws[3] * (width - box_width)).round()
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    rows = (y >= top[..., None]) & (y < (top + box_height)[..., None])
    columns = (x >= left[..., None]) & (x < (left + box_width)[..., None])
    covered = rows[..., :, None] & columns[..., None, :]
    return covered.sum(dim=1) % 2 == 1


def partners(batch: int) -> list[int]:
    """The image each of `batch` images takes pixels from: the next in its group of four, the last one's is the first.

    A last, incomplete group is a ring of its own; an image alone in it is its own partner.
    """
    groups = [range(start, min(start + GROUP, batch)) for start in range(0, batch, GROUP)]
    return [group[(i + 1) % len(group)] for group in groups for i in range(len(group))]


def cutmix(values: Tensor, boxes: Tensor) -> Tensor:
    """Each image with the pixels of its partner (see `partners`) inside its box.

    `values` is (B, H, W) or (B, K, H, W), `boxes` bool (B, H, W). The same boxes mix images and their pseudo-labels.
    Both are one rank's; its partners are fetched from other ranks where its images are not whole groups.
    """
    inside = boxes if values.ndim == 3 else boxes[:, None]
    first = rank() * len(values)
    own = partners(len(values) * world_size())[first : first + len(values)]
    everywhere = all_gather(values) if len(values) % GROUP else values
    offset = first if everywhere is values else 0
    # Rows one by one: an index tensor would have to travel to the device.
    return torch.where(inside, torch.stack([everywhere[i - offset] for i in own]), values)
