"""CutMix of unlabelled images and of what belongs to them."""

import math
from typing import Literal

import torch
from torch import Tensor

from u2pl.ranks.collectives import all_gather, rank, share, world_size

Shape = Literal["uniform_width", "log_uniform_height"]  # how a box of half the area is drawn


def cutmix_boxes(
    batch: int, height: int, width: int, *, probability: float, generator: torch.Generator, device: torch.device | str,
    shape: Shape = "uniform_width",
) -> Tensor:  # fmt: skip
    """One box of half the area for each image: bool (B, H, W), True where the partner's pixels go.

    One side is drawn and the other follows from the area, rounded to pixels. `uniform_width`: the width is a uniform
    integer from floor(W / 2) + 1 to W - 1, so a box is neither the whole width nor higher than the image (the released
    code's). `log_uniform_height`: the height is log-uniform in [H / 2, H]. The place is uniform over all that fit.
    With `1 - probability` the whole batch stays unmixed (all False). Everything is drawn from `generator` on `device`,
    without a copy to the host.
    """
    draws = torch.rand(3, batch, generator=generator, device=device)
    mix = torch.rand((), generator=generator, device=device) < probability
    area = height * width / 2
    if shape == "uniform_width":
        narrowest = width // 2 + 1
        widths = max(1, width - narrowest)  # images of one or two columns have the whole width alone
        box_width = narrowest + (draws[0] * widths).floor()
        box_height = (area / box_width).round().clamp(1, height)
    else:
        box_height = torch.exp(draws[0] * math.log(0.5)).mul(height).ceil().clamp(max=height)
        box_width = (area / box_height).round().clamp(1, width)
    top = (draws[1] * (height - box_height + 1)).floor()
    left = (draws[2] * (width - box_width + 1)).floor()
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    rows = (y >= top[:, None]) & (y < (top + box_height)[:, None])
    columns = (x >= left[:, None]) & (x < (left + box_width)[:, None])
    return rows[:, :, None] & columns[:, None, :] & mix


def boxes_for(images: Tensor, probability: float, generator: torch.Generator, shape: Shape = "uniform_width") -> Tensor:
    """`cutmix_boxes` for one rank's images (B, 3, H, W), drawn for the global batch: bool (B, H, W)."""
    size = (len(images) * world_size(), images.shape[2], images.shape[3])
    boxes = cutmix_boxes(*size, probability=probability, generator=generator, device=images.device, shape=shape)
    return share(boxes)


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


def partners(batch: int, group: int) -> list[int]:
    """The image each of `batch` images takes pixels from: the next of its `group`; the last one's is the first.

    The groups are the shares of the released code's GPUs, here whatever the number of GPUs. A last, incomplete group is
    a ring of its own; an image alone in it is its own partner.
    """
    groups = [range(start, min(start + group, batch)) for start in range(0, batch, group)]
    return [ring[(i + 1) % len(ring)] for ring in groups for i in range(len(ring))]


def cutmix(values: Tensor, boxes: Tensor, group: int) -> Tensor:
    """Each image with the pixels of its partner (see `partners`) inside its box.

    `values` is (B, H, W) or (B, K, H, W), `boxes` bool (B, H, W). The same boxes mix images and their pseudo-labels.
    Both are one rank's; its partners are fetched from other ranks where its images are not whole groups.
    """
    inside = boxes if values.ndim == 3 else boxes[:, None]
    first = rank() * len(values)
    own = partners(len(values) * world_size(), group)[first : first + len(values)]
    everywhere = all_gather(values) if len(values) % group else values
    offset = first if everywhere is values else 0
    # Rows one by one: an index tensor would have to travel to the device.
    return torch.where(inside, torch.stack([everywhere[i - offset] for i in own]), values)
