"""Mean IoU over a whole validation list, from centre crops or from sliding windows at full resolution."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from u2pl.components.pseudo_labels import most_probable
from u2pl.data.augment import centre_crop, normalise
from u2pl.data.batches import SegmentationFolder, outlive_signals
from u2pl.data.lists import read_ids
from u2pl.engine.checkpoints import load_network_weights, load_run
from u2pl.engine.seeding import choose_device, deterministic
from u2pl.errors import UserError
from u2pl.experiments.confusions import CHECKPOINTS, Confusions, write_confusions
from u2pl.experiments.read import validate
from u2pl.experiments.records import RunEvaluation, write
from u2pl.folders import Run, Split
from u2pl.methods import method_class
from u2pl.models import DeepLab, build_network
from u2pl.models.deeplab import upsample
from u2pl.ranks.collectives import all_reduce_sum, rank, world_size

if TYPE_CHECKING:
    from u2pl.experiments.schema import Dataset
    from u2pl.experiments.suite import RunSpec

Sample = tuple[Tensor, Tensor]


def confusion_matrix(pred: Tensor, target: Tensor, n_classes: int, ignore: int) -> Tensor:
    """Count pixels: int64 (n_classes, n_classes), rows the target's class and columns the prediction's.

    pred, target: integer tensors of equal shape, classes 0 to n_classes - 1; pixels with target `ignore` are left out.
    """
    return confusion_matrices(pred[None], target[None], n_classes, ignore)[0]


def confusion_matrices(pred: Tensor, target: Tensor, n_classes: int, ignore: int) -> Tensor:
    """As `confusion_matrix`, of each of the B images (B, ...) by itself: int64 (B, n_classes, n_classes)."""
    size, images = n_classes**2, len(target)
    # One more bin takes the ignored pixels: selecting the others first costs more than counting them.
    cells = torch.where(target != ignore, target.long() * n_classes + pred, size).flatten(1)
    cells += torch.arange(0, images * (size + 1), size + 1, device=cells.device)[:, None]
    counts = torch.bincount(cells.flatten(), minlength=images * (size + 1))
    return counts.view(images, size + 1)[:, :size].reshape(images, n_classes, n_classes)


def iou(confusion: Tensor) -> Tensor:
    """Intersection over union per class in percent, float64 (n_classes,); nan for a class seen in neither."""
    counts = confusion.double()
    intersection = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - intersection
    return 100 * intersection / union  # 0 / 0 is nan


def mean_iou(confusion: Tensor) -> float:
    """Mean over the classes that occur, in percent: sums over the set first, so not a mean over images."""
    return float(iou(confusion).nanmean())


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """First pixels of windows along one side; the last window ends at the border, so that all are whole.

    >>> window_starts(10, 4, 3)
    [0, 3, 6]
    >>> window_starts(11, 4, 3)
    [0, 3, 6, 7]
    """
    if length <= crop:
        return [0]
    return [*range(0, length - crop, stride), length - crop]


def sliding_logits(network: nn.Module, image: Tensor, crop: int, stride: int, batch: int) -> Tensor:
    """Logits (1, C, H, W) of one normalised image (1, 3, H, W): the mean over the windows that cover a pixel.

    crop, stride: pixels; batch: windows per forward. An image smaller than the crop is padded with zeros, the mean
    colour, at the bottom and the right.
    """
    height, width = image.shape[-2:]
    padded = functional.pad(image, (0, max(crop - width, 0), 0, max(crop - height, 0)))
    full = padded.shape[-2:]
    corners = [(y, x) for y in window_starts(full[0], crop, stride) for x in window_starts(full[1], crop, stride)]
    total: Tensor | None = None
    count = padded.new_zeros(full)
    for first in range(0, len(corners), batch):
        chosen = corners[first : first + batch]
        windows = torch.cat([padded[..., y : y + crop, x : x + crop] for y, x in chosen])
        logits = upsample(network(windows)["logits"], (crop, crop))
        if total is None:
            total = logits.new_zeros(1, logits.shape[1], *full)
        for (y, x), window in zip(chosen, logits, strict=True):
            total[0, :, y : y + crop, x : x + crop] += window
            count[y : y + crop, x : x + crop] += 1
    assert total is not None
    return (total / count)[..., :height, :width]


class _Readable(TorchDataset[Sample | UserError]):
    """With the UserError in place of the sample: torch would rebuild one that a worker raises from a single string."""

    def __init__(self, folder: SegmentationFolder) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Sample | UserError:
        try:
            return self.folder[index]
        except UserError as error:
            return error


def _collate(
    found: list[Sample | UserError], crop: int | None, pad: int, mean: tuple[float, ...]
) -> Sample | UserError:
    for item in found:
        if isinstance(item, UserError):
            return item
    samples = [item for item in found if not isinstance(item, UserError)]
    if crop is not None:
        samples = [centre_crop(image, mask, crop, pad, mean) for image, mask in samples]
    return torch.stack([image for image, _ in samples]), torch.stack([mask for _, mask in samples])


def _batches(prepared: Path, ids: list[str], dataset: "Dataset", workers: int, pad: int) -> Iterator[Sample]:
    """Images uint8 (B, 3, H, W) and masks (B, H, W); images of full size come one by one."""
    cropped = dataset.evaluation.mode == "centre_crop"
    folder = SegmentationFolder(prepared, ids, n_classes=len(dataset.classes), ignore_label=dataset.ignore_label)
    collate = partial(_collate, crop=dataset.evaluation.crop if cropped else None, pad=pad, mean=dataset.mean)
    size = dataset.evaluation.batch if cropped else 1
    # A generator of its own: the loader draws a seed, which must not move the one dropout draws from.
    loader = DataLoader(
        _Readable(folder),
        batch_size=size,
        num_workers=workers,
        collate_fn=collate,
        generator=torch.Generator(),
        worker_init_fn=outlive_signals,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def evaluate(
    network: nn.Module,
    prepared: Path,
    ids: list[str],
    dataset: "Dataset",
    device: torch.device,
    workers: int = 0,
    pad: int = 255,
    between: Callable[[], None] = lambda: None,
) -> Tensor:
    """Confusion matrix over the whole list, int64 (C, C) on the CPU; arguments as of `evaluate_images`."""
    return evaluate_images(network, prepared, ids, dataset, device, workers, pad, between).sum(0)


@torch.inference_mode()
def evaluate_images(
    network: nn.Module,
    prepared: Path,
    ids: list[str],
    dataset: "Dataset",
    device: torch.device,
    workers: int = 0,
    pad: int = 255,
    between: Callable[[], None] = lambda: None,
) -> Tensor:
    """Confusion matrix of the network on each of the images `ids`, int64 (images, C, C) on the CPU, in that order.

    network: on `device`, maps images (B, 3, H, W) to {"logits": (B, C, h, w)}; evaluated in eval mode and left in the
    mode it was in. dataset: with the evaluation mode. pad: the label of what a centre crop adds to a smaller image.
    between: called after every batch. Several ranks share the images and all get every matrix; workers are of all ranks
    together. Raises UserError if an image is missing or damaged.
    """
    settings, n_classes = dataset.evaluation, len(dataset.classes)
    stride = math.ceil(settings.stride * settings.crop)
    confusions = torch.zeros(len(ids), n_classes, n_classes, dtype=torch.int64)
    counted = confusions[rank() :: world_size()]  # of this rank's images; a view
    done = 0
    own, workers = ids[rank() :: world_size()], -(-workers // world_size())
    training = network.training
    network.eval()
    try:
        for images, masks in _batches(prepared, own, dataset, workers, pad):
            inputs = normalise(images.to(device), dataset.mean, dataset.std)
            if settings.mode == "centre_crop":
                logits = upsample(network(inputs)["logits"], (inputs.shape[-2], inputs.shape[-1]))
            else:
                logits = sliding_logits(network, inputs, settings.crop, stride, settings.batch)
            labels = masks.to(device)
            matrices = confusion_matrices(most_probable(logits), labels, n_classes, dataset.ignore_label)
            counted[done : done + len(masks)] = matrices.cpu()
            done += len(masks)
            between()
    finally:
        network.train(training)
    # A matrix is counted by one rank and zero on the others. 5 MB at 1449 images of 21 classes.
    return all_reduce_sum(confusions)


def validation_ids(split: Path) -> list[str]:
    """The split's validation list. Raises UserError if it is missing or empty."""
    path = Split(split).list("val")
    ids = read_ids(path)
    if not ids:
        raise UserError(path, "no image ids", "one or more")
    return ids


def network_of(spec: "RunSpec") -> DeepLab:
    """A network of a run, randomly initialised."""
    settings, n_classes = spec.settings, len(spec.dataset.classes)
    auxiliary = settings.cityscapes_loss == "ohem_auxiliary"
    return build_network(spec.recipe.network, n_classes, stem=settings.backbone_stem, auxiliary=auxiliary)


def evaluated_network(spec: "RunSpec") -> nn.Module:
    """A network that the weights in a run's weights.pt fit."""
    return method_class(spec.method).new_evaluated(spec.settings, lambda: network_of(spec))


def pad_label(spec: "RunSpec") -> int:
    """The label of padded pixels in a centre crop: the released code scores them as class 0."""
    return spec.dataset.ignore_label if spec.settings.crop_pad_label_evaluation == "ignore" else 0


def evaluate_run(
    spec: "RunSpec",
    prepared: Path,
    split: Path,
    run_dir: Path,
    device: str | torch.device = "auto",
    between: Callable[[], None] = lambda: None,
) -> None:
    """Evaluate weights.pt of a run on the split's val.txt and write images.npz and evaluation.json beside it.

    images.npz: the confusion matrices of each image, see u2pl/experiments/confusions.py.

    evaluation.json: {"last": {"confusion": rows of target classes, "iou": percent per class (null where the class
    occurs nowhere), "miou": percent}, "best": the same, "weights_sha256": of weights.pt, "images_sha256": of
    images.npz}; its matrices are the sums over images. between: see `evaluate_images`.
    Raises UserError if a file is missing, is not as run.json records it or does not fit.
    """
    target = choose_device(device, spec.recipe.gpus) if isinstance(device, str) else device
    recipe = spec.recipe
    ids = validation_ids(split)
    weights, weights_sha256 = load_run(spec, run_dir)
    results: dict[str, Any] = {"weights_sha256": weights_sha256}
    images: dict[str, Tensor] = {}
    with deterministic(max(1, recipe.threads // world_size()), tf32=recipe.tf32):
        network = evaluated_network(spec).to(target)
        for selection in CHECKPOINTS:
            load_network_weights(network, weights, selection, Run(run_dir).weights)
            pad = pad_label(spec)
            images[selection] = evaluate_images(
                network, prepared, ids, spec.dataset, target, recipe.workers, pad, between
            )
            confusion = images[selection].sum(0)
            classes = [None if math.isnan(value) else value for value in iou(confusion).tolist()]
            results[selection] = {"confusion": confusion.tolist(), "iou": classes, "miou": mean_iou(confusion)}
    if rank() == 0:
        run = Run(run_dir)
        # evaluation.json comes last: it says which images.npz is its own.
        counts = {name: matrices.numpy() for name, matrices in images.items()}
        results["images_sha256"] = write_confusions(run.images, Confusions(ids, counts))
        write(run.evaluation, validate(RunEvaluation, results, run.evaluation))
