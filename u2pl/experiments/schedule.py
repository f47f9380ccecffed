"""Batch size, steps per epoch and validations of a run: counted once, for the training and for what it costs."""

import math

from u2pl.experiments.schema import Recipe
from u2pl.experiments.settings import SupOnly, Training
from u2pl.experiments.suite import RunSpec, Suite


def images_per_step(batch: int, batch_size: str) -> int:
    """Labelled images per step, and unlabelled ones as well where they are read.

    `batch` is the recipe's, `batch_size` the method's setting. Half of an odd batch is rounded down, but never to 0.
    """
    return batch if batch_size == "per_stream" else max(1, batch // 2)


def steps_per_epoch(recipe: Recipe, settings: Training, labelled: int, unlabelled: int) -> int:
    """Steps of an epoch: one pass over the unlabelled list; over the labelled one if nothing is unlabelled.

    SupOnly takes a pass over the labelled list, unless its settings count otherwise. `global`: whole batches of the
    list. `distributed`: as the samplers of the released code's GPUs count. Each GPU gets an equal part of the list,
    which is padded for that; the semi-supervised methods drop the incomplete last batch of the parts, SupOnly keeps it.
    Here a kept last batch is a whole one all the same, filled from the next shuffled pass over the list.
    The unlabelled list is what the method reads as such (`seen_unlabelled`). A list shorter than a batch gives one
    step.
    """
    batch = images_per_step(recipe.batch, settings.batch_size)
    by_labelled = isinstance(settings, SupOnly) and settings.suponly_epoch_unit == "labelled"
    unlabelled = settings.seen_unlabelled(labelled, unlabelled)
    length = unlabelled if unlabelled and not by_labelled else labelled
    if settings.sampler == "distributed":
        gpus = max(1, batch // (settings.supervised_group if by_labelled else settings.group_size))
        length = gpus * math.ceil(length / gpus)
        if by_labelled:
            return math.ceil(length / batch)
    return max(1, length // batch)


def steps_of(suite: Suite, spec: RunSpec) -> int:
    """Steps of an epoch of a run, by the counts that the params declare."""
    unlabelled = spec.dataset.counts[suite.protocols[spec.protocol].universe] - spec.labelled
    return steps_per_epoch(spec.recipe, spec.settings, spec.labelled, unlabelled)


def validation_mode(selected_by: str, reported: str) -> str:
    """How validations while training evaluate: by centre crops, or in the mode whose metric is reported."""
    return "centre_crop" if selected_by == "centre_crop" else reported


def validates(epoch: int, epochs: int, validate_every: int) -> bool:
    """Whether a validation follows the epoch, counted from 1: every `validate_every` epochs and after the last."""
    return epoch % validate_every == 0 or epoch == epochs


def validations(epochs: int, validate_every: int) -> int:
    """The epochs that a validation follows."""
    return math.ceil(epochs / validate_every)
