"""Images that a method chooses itself, loaded beside the batches while the rest of a step runs."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors

from u2pl.data.augment import WeakAugmentation


def observes(step: int, every: int) -> bool:
    """Whether a step of an epoch is one of those, the first of every so many, whose pseudo-labels are measured."""
    return every > 0 and step % every == 0


class ChosenImages:
    """One rank's share of the images that a step has chosen for the next, augmented like any other.

    The random numbers of an augmentation come from (seed, epoch, position) and are drawn where they are asked for, as
    torch's generator is not for several threads; the threads decode, cut and resize. Nothing here is state: what was
    asked for before an interruption is asked for again.

    image: the unlabelled image at a place in the list; numbers: the random numbers for an epoch and a position;
    stretch: this rank's places in a batch of `batch` images; truth: the mask of the image at a place, given its size,
    which is read for the first of every `truth_every` steps of an epoch (0: for none).
    """

    def __init__(
        self,
        image: Callable[[int], tv_tensors.Image],
        transform: WeakAugmentation,
        numbers: Callable[[int, int], Sequence[float]],
        batch: int,
        stretch: range,
        threads: int,
        truth: Callable[[int, tuple[int, int]], tv_tensors.Mask] | None = None,
        truth_every: int = 0,
    ) -> None:
        self.image, self.transform, self.numbers, self.batch, self.stretch = image, transform, numbers, batch, stretch
        self.truth, self.truth_every = truth, truth_every
        self._pool = ThreadPoolExecutor(max(1, threads), "chosen-images")
        self._coming: dict[tuple[int, int], list[Future[list[Tensor]]]] = {}

    def ask(self, places: Sequence[int], epoch: int, step: int) -> None:
        """Start to load this rank's share of `places` in the unlabelled list, those of a whole batch, for a step."""
        self._coming.clear()
        own = [(places[slot], self.numbers(epoch, step * self.batch + slot)) for slot in self.stretch]
        observed = observes(step, self.truth_every)
        self._coming[epoch, step] = [self._pool.submit(self._load, *each, observed) for each in own]

    def coming(self, epoch: int, step: int) -> bool:
        """Whether the images of a step have been asked for."""
        return (epoch, step) in self._coming

    def take(self, epoch: int, step: int) -> Tensor:
        """The images that were asked for, uint8 (B, 3, h, w). Raises UserError as `SegmentationFolder` does."""
        return torch.stack([each.result()[0] for each in self._coming.pop((epoch, step))])

    def masks(self, epoch: int, step: int) -> Tensor:
        """Those of an observed step's images, uint8 (B, h, w), before these are taken."""
        return torch.stack([each.result()[1] for each in self._coming[epoch, step]])

    def settle(self) -> None:
        """Wait for what is being loaded: before a process is forked, whose copy of a busy thread's locks stays shut."""
        for images in self._coming.values():
            for each in images:
                each.exception()

    def forget(self) -> None:
        """Drop what was asked for."""
        self._coming.clear()

    def _load(self, place: int, draws: Sequence[float], observed: bool) -> list[Tensor]:
        sample: list[Any] = [self.image(place)]
        size = sample[0].shape[-2], sample[0].shape[-1]
        if observed and self.truth is not None:
            sample.append(self.truth(place, size))
        params = self.transform.window(size, draws)
        return [self.transform.transform(values, params).as_subclass(Tensor) for values in sample]
