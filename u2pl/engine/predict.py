"""What a finished run's network says of single images, whole and at their own size: the numbers of the figures."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from u2pl.components.pseudo_labels import drop_unreliable, entropy, entropy_threshold, most_probable
from u2pl.data.augment import normalise
from u2pl.data.batches import SegmentationFolder
from u2pl.data.images import UInt8
from u2pl.engine.checkpoints import load_network_weights, load_run
from u2pl.engine.evaluate import confusion_matrix, evaluated_network, iou, sliding_logits
from u2pl.engine.seeding import choose_device, deterministic
from u2pl.experiments.settings import unreliable_share
from u2pl.folders import Run

if TYPE_CHECKING:
    from u2pl.experiments.schema import Dataset
    from u2pl.experiments.suite import RunSpec


@dataclass(frozen=True)
class Prediction:
    """An image (H, W, 3), its ground truth (H, W), and the network's probabilities (C, H, W)."""

    image: UInt8
    mask: UInt8
    probs: NDArray[np.float32]


@dataclass(frozen=True)
class Reliability:
    """By class: IoU in percent (nan where it occurs in neither), and how many of its pixels are (un)reliable."""

    iou: list[float]
    reliable: list[int]
    unreliable: list[int]


def predict(
    spec: "RunSpec", prepared: Path, ids: Sequence[str], run_dir: Path, selection: str, device: str = "auto"
) -> list[Prediction]:
    """Predictions of the run's weights, "last" or "best".

    Raises UserError if a file is missing, is not as run.json records it or does not fit.
    """
    target = choose_device(device, spec.recipe.gpus)
    with deterministic(spec.recipe.threads):
        network = _trained(spec, run_dir, selection, target)
        samples = _probabilities(network, spec, prepared, ids, target)
        return [
            Prediction(image.permute(1, 2, 0).numpy(), mask.numpy().astype(np.uint8), probs[0].cpu().numpy())
            for image, mask, probs in samples
        ]


def reliability(
    spec: "RunSpec", prepared: Path, ids: Sequence[str], run_dir: Path, device: str = "auto"
) -> Reliability:
    """IoU and numbers of reliable pixels by class of the ground truth, over the images `ids`.

    Entropies are divided as in the training step (Eq. 6): by their percentile over as many images as a batch has, at
    alpha_0 and with the last epoch's weights; of alpha_t (Eq. 7) next to nothing is left then. Raises UserError as
    `predict` does.
    """
    target = choose_device(device, spec.recipe.gpus)
    settings, n_classes, ignore = spec.settings, len(spec.dataset.classes), spec.dataset.ignore_label
    confusion = torch.zeros(n_classes, n_classes, dtype=torch.int64)
    counts = torch.zeros(2, n_classes, dtype=torch.int64)
    with deterministic(spec.recipe.threads):
        network = _trained(spec, run_dir, "last", target)
        for first in range(0, len(ids), spec.recipe.batch):
            batch = ids[first : first + spec.recipe.batch]
            labels, predicted, entropies = [], [], []
            for _, mask, probs in _probabilities(network, spec, prepared, batch, target):
                labels.append(mask.flatten())
                predicted.append(most_probable(probs).flatten().cpu())
                entropies.append(entropy(probs).flatten().cpu())
            truth, pred, h = torch.cat(labels), torch.cat(predicted), torch.cat(entropies)
            confusion += confusion_matrix(pred, truth, n_classes, ignore)
            unreliable = drop_unreliable(pred, h, entropy_threshold(h, unreliable_share(settings)), ignore) == ignore
            for row, group in enumerate((~unreliable, unreliable)):
                counts[row] += torch.bincount(truth[group & (truth != ignore)], minlength=n_classes)
    return Reliability(iou(confusion).tolist(), counts[0].tolist(), counts[1].tolist())


def richest(prepared: Path, ids: Sequence[str], dataset: "Dataset", n: int) -> list[str]:
    """The `n` images with most classes in their ground truth, the first of equals: chosen before any prediction."""
    folder = _folder(prepared, ids, dataset)
    found = [len(np.setdiff1d(np.unique(folder[index][1]), [dataset.ignore_label])) for index in range(len(ids))]
    return [ids[index] for index in sorted(range(len(ids)), key=lambda i: -found[i])[:n]]


def _folder(prepared: Path, ids: Sequence[str], dataset: "Dataset") -> SegmentationFolder:
    return SegmentationFolder(prepared, ids, n_classes=len(dataset.classes), ignore_label=dataset.ignore_label)


def _trained(spec: "RunSpec", run_dir: Path, selection: str, device: torch.device) -> nn.Module:
    weights, _ = load_run(spec, run_dir)
    network = evaluated_network(spec)
    load_network_weights(network, weights, selection, Run(run_dir).weights)
    return network.to(device).eval()


def _probabilities(
    network: nn.Module, spec: "RunSpec", prepared: Path, ids: Sequence[str], device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Image (3, H, W) uint8, mask (H, W) int64, and probabilities (1, C, H, W) on `device` of each image.

    An image is seen whole: in one window if the evaluation's crop holds it, else in windows as in the evaluation.
    """
    dataset, window = spec.dataset, spec.dataset.evaluation
    folder = _folder(prepared, ids, dataset)
    for index in range(len(ids)):
        image, mask = folder[index]
        with torch.inference_mode():
            inputs = normalise(image.to(device)[None], dataset.mean, dataset.std)
            stride = math.ceil(window.stride * window.crop)
            probs = sliding_logits(network, inputs, window.crop, stride, window.batch).softmax(1)
        yield image.as_subclass(Tensor), mask.as_subclass(Tensor).long(), probs
