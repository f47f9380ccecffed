"""The category-wise memory bank Q_c: a first-in first-out queue of negatives for each class."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from u2pl.ranks.collectives import fetch


class MemoryBank(nn.Module):
    """One ring per class in a single preallocated tensor, kept on the device of the method.

    Holds what `deque(maxlen=capacities[c])` of class c would hold. Vectors are stored l2-normalised in float32: the
    loss uses only cosines, and a vector is sampled more often than it is stored. The rings lie one after the other
    instead of as (C, K, D), so that a larger background ring costs nothing for the other classes; the memory is
    sum(capacities) * channels * 4 bytes (0.67 GB for 50 000 + 20 * 30 000 vectors of 256). All state is in buffers: a
    resumed run starts with the bank it had, or not `saved`, with empty rings.

    Buffers: keys (sum of capacities, D); count, head int64 (C,): vectors held and the next slot of each ring.
    """

    keys: Tensor
    count: Tensor
    head: Tensor
    capacity: Tensor
    start: Tensor
    newest: tuple[Tensor, Tensor]  # of the last push, for diagnostics: see `NewKeys`; no state

    def __init__(self, capacities: Sequence[int], channels: int, *, saved: bool = True) -> None:
        super().__init__()
        if not capacities or min(capacities) < 1:
            raise ValueError(f"every class needs room for at least one vector: {list(capacities)}")
        capacity = torch.tensor(capacities, dtype=torch.int64)
        self.register_buffer("keys", torch.zeros(int(capacity.sum()), channels), persistent=saved)
        self.register_buffer("count", torch.zeros_like(capacity), persistent=saved)
        self.register_buffer("head", torch.zeros_like(capacity), persistent=saved)
        # derived from the settings: not part of a checkpoint
        self.register_buffer("capacity", capacity, persistent=False)
        self.register_buffer("start", capacity.cumsum(0) - capacity, persistent=False)

    def clear(self) -> None:
        """Forget every vector."""
        self.count.zero_()
        self.head.zero_()

    @torch.no_grad()
    def push(self, features: Tensor, qualified: Tensor, places: Tensor | None = None) -> None:
        """Append, for each class, the features of its qualified pixels in pixel order; the oldest leave.

        `features` is (n, D), of any length and float type; `qualified` is bool (C, n). Of several ranks each gives its
        own features and the `qualified` pixels of all, (C, n * world size), so that their banks stay equal. `places`
        are those of the `qualified` pixels among the features of all ranks, if they come in another order. Only rows
        that survive this very call are copied, or sent (the last `capacity` of a class). With one process, `nonzero` is
        the only wait for the device.
        """
        order = qualified.cumsum(dim=1)
        pushed = order[:, -1] if order.shape[1] else torch.zeros_like(self.count)
        surviving = qualified & (order > (pushed - self.capacity)[:, None])
        classes, pixels = surviving.nonzero(as_tuple=True)
        slots = (self.head[classes] + order[classes, pixels] - 1) % self.capacity[classes] + self.start[classes]
        rows = F.normalize(features.to(self.keys.dtype), dim=1)
        self.keys.index_copy_(0, slots, fetch(rows, pixels if places is None else places[pixels]))
        self.head.add_(pushed).remainder_(self.capacity)
        self.count.add_(pushed).clamp_(max=self.capacity)
        self.newest = surviving, torch.arange(order.shape[1], device=order.device) if places is None else places

    def rows(self, classes: Tensor, places: Tensor) -> Tensor:
        """Rows of `keys` of the `places`-th oldest vectors in the rings of `classes`: int64, broadcast together.

        A place that an empty ring does not have gives a row inside the ring, of a vector never pushed: the caller masks
        by `count`.
        """
        oldest = self.head[classes] - self.count[classes]
        return (oldest + places) % self.capacity[classes] + self.start[classes]

    def held(self, label: int) -> Tensor:
        """The vectors of one class from oldest to newest, (count, D); waits for the device."""
        count, head, capacity = int(self.count[label]), int(self.head[label]), int(self.capacity[label])
        slots = torch.arange(head - count, head, device=self.keys.device) % capacity
        return self.keys[self.start[label] + slots]
