"""Prepared files -> samples -> training batches that depend on (seed, epoch, position) only."""

import signal
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import tv_tensors

from u2pl.data.augment import WeakAugmentation
from u2pl.data.chosen import ChosenImages, observes
from u2pl.data.images import check_labels, check_size, decode_image, decode_mask, read_bytes
from u2pl.errors import UserError
from u2pl.experiments.records import PreparedManifest, read
from u2pl.experiments.schedule import images_per_step, steps_per_epoch
from u2pl.experiments.schema import Dataset, Recipe
from u2pl.experiments.settings import Draw, Stream, Training
from u2pl.folders import Prepared

Sample = tuple[tv_tensors.Image, tv_tensors.Mask]
# The number that is part of every sample's seed, and the end of the names in a batch.
_DRAWS: dict[Draw, tuple[int, str]] = {
    "labelled": (0, "l"),
    "unlabelled": (1, "u"),
    "unlabelled_2": (2, "u2"),
    "labelled_2": (3, "l2"),
}
_CHOSEN = 4  # the like of what a method chooses


class SegmentationFolder(TorchDataset[Sample]):
    """The images `ids` of a prepared folder with their masks.

    An item is (tv_tensors.Image (3, H, W) uint8, tv_tensors.Mask (H, W) uint8). Getting one raises UserError for a
    missing or truncated file, a mask of another size than its image, and a label outside the classes.
    """

    def __init__(
        self,
        prepared: Path,
        ids: Sequence[str],
        *,
        n_classes: int,
        ignore_label: int,
    ) -> None:
        self.prepared = Prepared(prepared)
        self.suffix = read(PreparedManifest, self.prepared.manifest).suffix
        self.ids = list(ids)
        self.n_classes, self.ignore_label = n_classes, ignore_label

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        image = self.image(index)
        return image, self.mask(index, (image.shape[-2], image.shape[-1]))

    def image(self, index: int) -> tv_tensors.Image:
        """The image alone; its mask is not read."""
        path = self.prepared.images / f"{self.ids[index]}{self.suffix}"
        pixels = decode_image(read_bytes(path), path)
        return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())

    def mask(self, index: int, size: tuple[int, int]) -> tv_tensors.Mask:
        """The mask alone, which must have the image's size."""
        path = self.prepared.mask(self.ids[index])
        labels = decode_mask(read_bytes(path), path)
        check_size(labels, size, path)
        check_labels(labels, self.n_classes, self.ignore_label, path)
        return tv_tensors.Mask(torch.from_numpy(labels))

    def truth(self, index: int, size: tuple[int, int]) -> tv_tensors.Mask:
        """The mask where there is a file, else one of `ignore_label` alone: unlabelled images need none."""
        if self.prepared.mask(self.ids[index]).is_file():
            return self.mask(index, size)
        return tv_tensors.Mask(torch.full(size, self.ignore_label, dtype=torch.uint8))


class TrainBatches:
    """The batches of a run.

    `settings.streams` says what a batch carries. An epoch has `u2pl.experiments.schedule.steps_per_epoch` steps; a list
    that is too short for them starts another pass in a new order, amid a batch if need be. Orders and augmentations
    come from (recipe seed, epoch, stream, position) alone: batches do not depend on the number of workers, and an epoch
    can be entered without those before it. Of `ranks` processes, the one called `rank` loads its stretch of each batch
    only; `images` is its length. `truth_every`: the first of every so many steps of an epoch also carries the masks of
    its unlabelled images; 0: none does. Raises UserError if a batch has no equal stretches.
    """

    def __init__(
        self,
        prepared: Path,
        labelled_ids: Sequence[str],
        unlabelled_ids: Sequence[str],
        dataset: Dataset,
        recipe: Recipe,
        settings: Training,
        seed: int,
        *,
        rank: int = 0,
        ranks: int = 1,
        truth_every: int = 0,
    ) -> None:
        if not labelled_ids:
            raise UserError("labelled list", "no image", "one or more")
        pad_label = dataset.ignore_label if settings.crop_pad_label_train == "ignore" else 0

        def transform(draw: Draw) -> WeakAugmentation:
            # Nothing is trained on the masks of unlabelled images, and nothing is counted where these are padded.
            label = pad_label if draw.startswith("labelled") else dataset.ignore_label
            scales = settings.scale_range(draw, recipe.resize)
            return WeakAugmentation(recipe.crop, scales, label, dataset.mean, settings.label_resize, recipe.mirror)

        transforms = {draw: transform(draw) for draw in _DRAWS}

        def folder(ids: Sequence[str]) -> SegmentationFolder:
            return SegmentationFolder(prepared, ids, n_classes=len(dataset.classes), ignore_label=dataset.ignore_label)

        seen = settings.seen_unlabelled(list(labelled_ids), list(unlabelled_ids))
        # With every image labelled there is still something to be consistent on: the labelled images themselves.
        folders = folder(labelled_ids), folder(seen or labelled_ids)
        self.unlabelled = len(folders[1])
        steps = steps_per_epoch(recipe, settings, len(labelled_ids), len(unlabelled_ids))
        batch = images_per_step(recipe.batch, settings.batch_size)
        if batch % ranks:
            raise UserError("recipe: batch", f"{batch} images a step for {ranks} ranks", f"a multiple of {ranks}")
        self.images = batch // ranks
        stretch = range(rank * self.images, (rank + 1) * self.images)
        self._steps = _Steps(*folders, transforms, settings.streams, steps, batch, stretch, seed, truth_every)
        self._order = _Order()
        self._loader = DataLoader(
            self._steps,
            batch_size=None,
            sampler=self._order,
            num_workers=(workers := -(-recipe.workers // ranks)),
            generator=torch.Generator(),  # the loader draws a seed nobody uses: not from the global generator
            pin_memory=recipe.pinned_memory and torch.cuda.is_available(),
            persistent_workers=recipe.persistent_workers and workers > 0,
            worker_init_fn=outlive_signals,
        )
        # Not of the loader, which is ahead of the step that chooses.
        self.chosen: ChosenImages | None = None
        if "chosen" in settings.streams:
            reading = folders[1].image, transforms["unlabelled"], self._steps.chosen_numbers
            self.chosen = ChosenImages(*reading, batch, stretch, workers, folders[1].truth, truth_every)

    def __len__(self) -> int:
        """Steps an epoch."""
        return len(self._steps)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Yield the steps of an epoch, from step `start` on, each with what the streams ask for:

        - labelled: image_l (B, 3, h, w) uint8 and mask_l (B, h, w) int64; unlabelled: image_u, like image_l
        - labelled_2: image_l2 and mask_l2; unlabelled_2: image_u2. Each is a second draw from its list, in an order and
          with augmentations of its own
        - ids: index_u (B,) int64, where the images of image_u are in the list that the stream reads
        - valid: valid_l, valid_u, ... (B, h, w) bool, one per image_*: False where the crop is padded
        - raw: raw_u, the bytes of image_u, which stay bytes when images are normalised
        - oracle: mask_u (B, h, w) int64, the true masks of image_u, for an upper bound

        The images of `chosen`, image_p, are not among them: a step chooses those of the next, see `chosen`. Every
        `truth_every` steps truth_u, and truth_u2 if there is image_u2, (B, h, w) uint8, are the masks of those images,
        the ignore label where there is none and where the crop is padded: for diagnostics, no method sees them.

        If nothing is unlabelled, the labelled list takes that list's place. Raises UserError as `SegmentationFolder`
        does.
        """
        self._order.keys = [(epoch, step) for step in range(start, len(self))]
        for batch in self._loader:
            if "error" in batch:
                raise UserError(*batch["error"])
            yield batch


def outlive_signals(worker: int) -> None:
    """Schedulers and a lost terminal signal every process of a job, but a step still needs the workers to end."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


class _Order:
    """The sampler: the (epoch, step) keys still to be made."""

    def __init__(self) -> None:
        self.keys: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


class _Steps(TorchDataset[dict[str, Any]]):
    """Key (epoch, step) -> a whole batch, so that one worker makes one step."""

    def __init__(
        self,
        labelled: SegmentationFolder,
        unlabelled: SegmentationFolder,
        transforms: Mapping[Draw, WeakAugmentation],
        streams: Set[Stream],
        steps: int,
        batch: int,
        stretch: range,
        seed: int,
        truth_every: int,
    ) -> None:
        self.labelled, self.unlabelled, self.transforms, self.streams = labelled, unlabelled, transforms, streams
        self.steps, self.batch, self.stretch, self.seed = steps, batch, stretch, seed
        self.truth_every = truth_every

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        out: dict[str, Tensor] = {}
        try:
            for draw in _DRAWS:
                if draw in self.streams:
                    out |= self._drawn(draw, *key)
        except UserError as error:
            # A worker process cannot raise it: torch rebuilds exceptions from one string.
            return {"error": (error.where, error.found, error.expected)}
        return out

    def _drawn(self, draw: Draw, epoch: int, step: int) -> dict[str, Tensor]:
        """The entries of one draw, and those that are asked for beside it."""
        number, end = _DRAWS[draw]
        masked = draw.startswith("labelled")
        folder = self.labelled if masked else self.unlabelled
        oracle = draw == "unlabelled" and "oracle" in self.streams
        observed = not masked and (oracle or observes(step, self.truth_every))
        names = ["image"] + ["mask"] * masked + ["truth"] * observed + ["valid"] * ("valid" in self.streams)
        positions = range(step * self.batch + self.stretch.start, step * self.batch + self.stretch.stop)
        indices = [self._index(folder, epoch, number, position) for position in positions]
        samples = []
        for position, index in zip(positions, indices, strict=True):
            sample: list[Tensor] = [*folder[index]] if masked else [folder.image(index)]
            if observed:
                sample.append(folder.truth(index, (sample[0].shape[-2], sample[0].shape[-1])))
            if "valid" in self.streams:
                sample.append(tv_tensors.Mask(torch.ones(sample[0].shape[-2:], dtype=torch.bool)))
            with seeded(self.seed, epoch, number, position):
                samples.append(self.transforms[draw](sample))
        columns = [torch.stack(values).as_subclass(Tensor) for values in zip(*samples, strict=True)]
        out = {f"{name}_{end}": values for name, values in zip(names, columns, strict=True)}
        if masked:
            out[f"mask_{end}"] = out[f"mask_{end}"].long()
        if oracle:
            out["mask_u"] = out["truth_u"].long()
        if draw == "unlabelled" and "ids" in self.streams:
            out["index_u"] = torch.tensor(indices)
        if draw == "unlabelled" and "raw" in self.streams:
            out["raw_u"] = out["image_u"]  # the same bytes: normalising them makes new tensors
        return out

    def chosen_numbers(self, epoch: int, position: int) -> list[float]:
        """The random numbers of the augmentation of a chosen image."""
        with seeded(self.seed, epoch, _CHOSEN, position):
            return WeakAugmentation.draw()

    def _index(self, folder: SegmentationFolder, epoch: int, stream: int, position: int) -> int:
        """The epoch's order is one shuffled pass after the other: every image comes before any comes again."""
        repeat, offset = divmod(position, len(folder))
        order = np.random.default_rng([self.seed, epoch, stream, repeat]).permutation(len(folder))
        return int(order[offset])


class seeded:  # noqa: N801  (reads as a verb, as `torch.no_grad` does)
    """Run a block with torch's CPU generator seeded from the numbers, and put its state back afterwards."""

    def __init__(self, *numbers: int) -> None:
        self.seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def __enter__(self) -> None:
        self._state = torch.get_rng_state()
        # The CPU generator alone: torch.manual_seed would also seed the devices, whose state is not put back.
        torch.default_generator.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self._state)
