"""What a run takes: time and disk. Time as measured where a run of the same shape has finished, else as estimated."""

import math
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import NamedTuple, get_args

from u2pl.experiments.read import validate
from u2pl.experiments.records import RecordedSpec, RunRecord, read
from u2pl.experiments.schedule import images_per_step, steps_of, validation_mode, validations
from u2pl.experiments.settings import SETTINGS, Contrast, Draw
from u2pl.experiments.suite import RunSpec, Suite
from u2pl.folders import Results

MARGIN = 1.5  # of the time limit over the estimate: GPUs differ, and a run that is stopped waits in the queue again
# Imports, the first batches and the evaluation of the weights file: last and best, in windows on Cityscapes.
START_MINUTES = 10
WINDOWS = 8  # of a Cityscapes image, each of the size of the centre crop that `estimate.validation` is for
MB_PER_VECTOR = 4 / 1e6  # float32, times the representation's channels


class Shape(NamedTuple):
    """What the time of a step depends on, but for the device."""

    dataset: str
    method: str
    network: str  # as JSON, without the weights file
    crop: int
    batch: int
    validation: str  # mode
    world_size: int
    gpu: bool


class Rate(NamedTuple):
    """Seconds a step and a validation, and where they come from: a device's name, or None for the estimate."""

    step: float
    validation: float
    device: str | None


def estimated(spec: RunSpec) -> Rate:
    """The rate that the recipe guesses; `gpus` devices share a step, and half a batch takes half of it."""
    recipe = spec.recipe
    semi = "unlabelled" in spec.settings.streams
    step = recipe.estimate.semi_supervised_step if semi else recipe.estimate.supervised_step
    step *= spec.settings.step_cost
    share = images_per_step(recipe.batch, spec.settings.batch_size) / recipe.batch
    mode = validation_mode(spec.settings.selected_by, spec.dataset.evaluation.mode)
    forwards = 1 if mode == "centre_crop" else WINDOWS
    return Rate(step * share / max(1, recipe.gpus), forwards * recipe.estimate.validation, None)


def relative_step(spec: RunSpec) -> float:
    """Estimated time of a step over that of a Mean Teacher step."""
    estimate = spec.recipe.estimate
    share = images_per_step(spec.recipe.batch, spec.settings.batch_size) / spec.recipe.batch
    return estimated(spec).step * max(1, spec.recipe.gpus) / (estimate.semi_supervised_step * share)


def seconds(suite: Suite, spec: RunSpec, rate: Rate) -> float:
    """Wall time of a training at a rate."""
    recipe = spec.recipe
    passes = validations(recipe.epochs, recipe.validate_every)
    return recipe.epochs * steps_of(suite, spec) * rate.step + passes * rate.validation


def minutes(suite: Suite, spec: RunSpec, attempt: int = 1) -> int:
    """The time limit of a run's job. From the estimate, not from what was measured: it never moves by itself."""
    needed = MARGIN * seconds(suite, spec, estimated(spec)) / 60
    return growth(attempt) * (START_MINUTES + math.ceil(needed))


def growth(attempt: int) -> int:
    """Factor on memory and minutes: a run resumes from its state, so later attempts need not grow without end."""
    return min(attempt, 3)


def weights_mb(spec: RunSpec) -> float:
    """Size of weights.pt: last and best of what is evaluated."""
    return spec.recipe.estimate.weights_mb * 2 * spec.settings.kept


def state_mb(spec: RunSpec) -> float:
    """Size of the state that a run in progress resumes from: networks, momentum, best weights, memory bank, extras."""
    settings = spec.settings
    size = spec.recipe.estimate.weights_mb * (2 * settings.trained + settings.averaged + settings.kept)
    size += settings.extra_state_mb
    if isinstance(settings, Contrast) and settings.bank and settings.bank_in_checkpoint:
        vectors = settings.bank_size_background + settings.bank_size * (len(spec.dataset.classes) - 1)
        size += vectors * spec.recipe.network.representation * MB_PER_VECTOR
    return size


def shape_of(spec: RecordedSpec, world_size: int, gpu: bool) -> Shape:
    recipe = spec.recipe
    network = sorted((key, str(value)) for key, value in recipe.network.items() if key != "weights")
    size = images_per_step(recipe.batch, spec.settings.batch_size)
    mode = validation_mode(spec.settings.selected_by, str(spec.dataset.evaluation.get("mode")))
    return Shape(spec.dataset_name, spec.method, str(network), recipe.crop, size, mode, world_size, gpu)


def measured(suite: Suite, results: Path) -> dict[Shape, Rate]:
    """The rates of the finished runs below `results`/runs by shape: their mean on the device that ran most of them.

    Raises UserError if a run.json is not one.
    """
    found: dict[Shape, dict[str, list[Rate]]] = defaultdict(lambda: defaultdict(list))
    for path in Results(results).records():
        run = read(RunRecord, path)
        spec, took = run.spec, run.provenance
        if spec.method not in suite.methods:
            continue
        kind = SETTINGS[spec.method]
        own = {key: value for key, value in spec.settings.model_dump().items() if key in kind.model_fields}
        # What a method chooses itself is loaded beside the loader: images_per_s does not count it either.
        draws = len(validate(kind, own, path, ("spec", "settings")).streams & set(get_args(Draw)))
        shape = shape_of(spec, took.world_size, not took.device.startswith("cpu"))
        step = shape.batch * draws / took.images_per_s
        # images_per_s counts the training alone; the validations share the rest of the wall time.
        rest = max(0.0, took.wall_time_s - step * took.steps)
        passes = validations(spec.recipe.epochs, spec.recipe.validate_every)
        found[shape][took.device].append(Rate(step, rest / passes, took.device))
    rates = {}
    for shape, devices in found.items():
        device, runs = max(devices.items(), key=lambda item: len(item[1]))
        rates[shape] = Rate(fmean(rate.step for rate in runs), fmean(rate.validation for rate in runs), device)
    return rates
