"""What ranks tell each other. With one process nothing is sent, and each function gives back what it got.

Rank r of W holds the r-th stretch of the global batch's labelled images and the r-th of its unlabelled ones. Whatever
is gathered comes in the order that one process would have: labelled first, each stream by the number of the image.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

STREAMS = 2  # labelled and unlabelled images
# torch 2.14 gave it another name.
_gather_into = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor


def world_size() -> int:
    """The number of ranks; 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 outside a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        summed = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return all_reduce_sum(grads[0])


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum over the ranks, of any shape and number type; differentiable.

    Every rank calls `backward` on the same loss, so a gradient arrives `world_size()` times as large as that of one
    process; DDP takes the mean over the ranks, which puts it right.
    """
    if world_size() == 1:
        return value
    summed: Tensor = _Total.apply(value)
    return summed


def all_reduce_max(value: int) -> int:
    """The largest of the ranks' numbers. On the CPU: it waits for the ranks, not for their devices."""
    if world_size() == 1:
        return value
    shared = torch.tensor(value)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared)


def all_gather(values: Tensor, streams: int = 1) -> Tensor:
    """What all ranks hold, (n, ...) -> (n * world size, ...), without gradients.

    With `streams` 2 the values are of labelled images, then of as many unlabelled ones.
    """
    world = world_size()
    if world == 1:
        return values
    own = values.detach().contiguous()
    sent = own.view(torch.uint8) if own.dtype == torch.bool else own
    gathered = sent.new_empty(world * len(sent), *sent.shape[1:])
    _gather_into(gathered, sent)
    ordered = gathered.view(own.dtype).unflatten(0, (world, streams, -1)).transpose(0, 1)
    return ordered.flatten(0, 2)


def share(values: Tensor) -> Tensor:
    """This rank's stretch of what every rank holds for a whole stream, (n, ...) -> (n / world size, ...)."""
    size = len(values) // world_size()
    return values[rank() * size : (rank() + 1) * size]


def locate(index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Where the places `index` of what was gathered from both streams lie: the rank, and the place there.

    `size` is the number of places that each rank holds.
    """
    world = world_size()
    if world == 1:
        return torch.zeros_like(index), index
    stretch = size // STREAMS
    stream, place = index // (stretch * world), index % (stretch * world)
    return place // stretch, stream * stretch + place % stretch


def fetch(rows: Tensor, index: Tensor) -> Tensor:
    """Rows of all ranks, (n, D) -> (k, D), by their places (k,) in the gathered order; without gradients.

    Each rank sends a row once, however often it is asked for. All ranks must ask for the same: that tells each how
    much the others will send. Waits for the device once, for that number.
    """
    if world_size() == 1:
        return rows.index_select(0, index)
    owner, place = locate(index, len(rows))
    asked = torch.zeros(world_size(), len(rows), dtype=torch.bool, device=rows.device)
    asked[owner, place] = True
    own, counts = asked[rank()], asked.sum(1)
    sent = rows.new_zeros(int(counts.max()), rows.shape[1])
    sent[: int(counts[rank()])] = rows.detach()[own]
    position = asked.cumsum(1) - 1
    return all_gather(sent).view(world_size(), *sent.shape)[owner, position[owner, place]]
