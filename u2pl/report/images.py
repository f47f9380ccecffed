"""The images of a validation list as a sample: confusion matrices per image, and a bootstrap over them.

It answers another question than the seeds. An interval over seeds says how far the result of a training moves if it is
trained again; a bootstrap over images says how far the score of *one network* moves with other validation images of the
same kind. Neither contains the other, so both are shown and no verdict uses the second.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from u2pl.errors import UserError
from u2pl.experiments.confusions import Confusions, Counts, read_confusions
from u2pl.folders import Run as Folder
from u2pl.report.runs import Run
from u2pl.report.statistics import ALPHA

SEED = 0
RESAMPLES = 2000  # the ends of an interval then vary by about 3 % of its width with another seed

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bootstrap:
    """Percentile intervals at 1 - ALPHA in percent; NaN where nothing is known.

    miou: (2,), low and high; iou: (C, 2). A class's interval is of the resamples in which it occurs.
    """

    images: int
    miou: Floats
    iou: Floats


def read_images(folder: Folder, run: Run) -> Confusions | None:
    """The confusion matrices of a run's validation images; None if they were not kept.

    Runs made before there was an images.npz have none. Where weights.pt is not there either, only records of the run
    were copied, and what they name may be absent too.

    Raises UserError if the file is missing beside weights.pt, is not the one that evaluation.json records, or does not
    sum to its confusion matrices.
    """
    path, expected = folder.images, run.evaluation.images_sha256
    if expected is None:
        return None
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        if not folder.weights.exists():
            return None
        raise UserError(path, "no file", f"the one that {folder.evaluation} names: `u2pl evaluate`") from error
    except OSError as error:
        raise UserError(path, error.strerror, "a readable file") from error
    if (found := hashlib.sha256(data).hexdigest()) != expected:
        raise UserError(path, f"sha256 {found}", f"{expected} of {folder.evaluation}")
    confusions = read_confusions(path, data)
    if len(confusions.ids) != (images := run.record.provenance.split.counts["val"]):
        raise UserError(path, f"{len(confusions.ids)} images", f"{images} of the validation list in {folder.record}")
    for name, scores in run.evaluation.checkpoints.items():
        if confusions.counts[name].sum(0).tolist() != scores.confusion:
            raise UserError(path, f"{name} matrices of another sum", f"{name}.confusion of {folder.evaluation}")
    return confusions


@lru_cache(maxsize=4)
def resamples(images: int) -> Floats:
    """How often each image is in each resample: (RESAMPLES, images), whole numbers, the same in every call.

    All networks are scored on the same resamples, so that intervals of equal networks are equal.
    """
    drawn = np.random.default_rng(SEED).integers(images, size=(RESAMPLES, images))
    own_bins = drawn + images * np.arange(RESAMPLES)[:, None]
    counts = np.bincount(own_bins.ravel(), minlength=RESAMPLES * images).reshape(RESAMPLES, images)
    return counts.astype(np.float64)


def bootstrap(confusions: Counts) -> Bootstrap:
    """Resample images with replacement and score each resample as an evaluation is scored: sums first, then IoU.

    confusions: (images, C, C), rows of target classes, of one network.
    """
    images, n_classes = confusions.shape[:2]
    if images < 2:  # every resample is the image itself
        return Bootstrap(images, np.full(2, np.nan), np.full((n_classes, 2), np.nan))
    intersections = confusions.diagonal(axis1=1, axis2=2)
    unions = confusions.sum(1) + confusions.sum(2) - intersections
    # Intersection and union are linear in the matrices, so 2 C of their C x C columns will do. Pixels of a whole set
    # are far below 2**53: the products are exact, whatever the order in which a BLAS adds.
    per_image = np.concatenate([intersections, unions], axis=1).astype(np.float64)
    intersection, union = np.split(resamples(images) @ per_image, 2, axis=1)
    with np.errstate(invalid="ignore"):
        iou = 100 * intersection / union  # 0 / 0 is nan
    occurs = ~np.isnan(iou)
    number = occurs.sum(1)
    means = np.where(occurs, iou, 0).sum(1)[number > 0] / number[number > 0]
    classes = [_interval(iou[occurs[:, c], c]) for c in range(n_classes)]
    return Bootstrap(images, _interval(means), np.array(classes))


def _interval(values: Floats) -> Floats:
    if not len(values):
        return np.full(2, np.nan)
    return np.percentile(values, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
