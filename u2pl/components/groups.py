"""Parts of the global batch that a quantity is computed over: all of it, a GPU's share in the released code, an image.

Group k of size s holds the images k s to k s + s - 1 of each stream, counted over all ranks: groups follow from the
batch alone, whatever the number of ranks. A last, incomplete group counts like any other.
"""

from typing import Literal

import torch
from torch import Tensor

from u2pl.ranks.collectives import all_reduce_sum, rank, world_size


def extent(over: Literal["batch", "share", "image"], share: int, images: int) -> int:
    """The images per stream in a group: `share` of them, one, or all, where a rank holds `images`."""
    return {"batch": images * world_size(), "share": share, "image": 1}[over]


def group_of(images: int, size: int, device: torch.device) -> Tensor:
    """The group of each of a rank's `images` of a stream: int64 (images,)."""
    return (rank() * images + torch.arange(images, device=device)) // size


def group_sums(values: Tensor, size: int) -> Tensor:
    """Sums over the images of each group, of all ranks: (images, ...) -> (groups, ...); differentiable."""
    groups = torch.arange(-(-len(values) * world_size() // size), device=values.device)
    inside = groups[:, None] == group_of(len(values), size, values.device)
    # Sums of masked values: adding by index has no fixed order on GPUs.
    inside = inside.view(*inside.shape, *(1,) * (values.ndim - 1))
    return all_reduce_sum(torch.where(inside, values, 0).sum(dim=1))


def of_images(values: Tensor, images: int, size: int) -> Tensor:
    """The values (groups,) of the groups of a rank's `images`: (images, 1, 1)."""
    return values[group_of(images, size, values.device)].view(-1, 1, 1)


def both_streams(images: int, size: int, device: torch.device) -> list[Tensor]:
    """For each group, its images in what is gathered from labelled and unlabelled streams: int64, labelled ones first.

    `images` is the number per stream of one rank.
    """
    every = torch.arange(images * world_size(), device=device)
    return [torch.cat([part, len(every) + part]) for part in every.split(size)]


def group_mean(losses: Tensor, counted: Tensor, size: int | None) -> Tensor:
    """The mean over groups of the sum of `losses` (B, pixels) by the number of `counted` ones, bool of any (B, ...).

    A group without a counted pixel adds 0. `size` None: all images are one group.
    """
    size = size or len(losses) * world_size()
    counts = group_sums(counted.flatten(1).sum(dim=1), size)
    return (group_sums(losses.sum(dim=1), size) / counts.clamp(min=1)).mean()
