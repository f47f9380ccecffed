"""What the runs of a scale take, before anything is submitted: steps, hours, disk, and the minutes a job asks for.

Measured where a run of the same shape has finished, from the recipe's `estimate` otherwise.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from u2pl.errors import UserError
from u2pl.experiments.params import nearest
from u2pl.experiments.schema import RunSpec, Suite
from u2pl.experiments.settings import SETTINGS, Contrast, SupOnly
from u2pl.files import read_json

if TYPE_CHECKING:
    from rich.table import Table

MARGIN = 1.5  # of the time limit over the estimate: GPUs differ, and a run that is stopped waits in the queue again
START_MINUTES = 10  # imports, the first batches and the evaluation of the weights file
FINISHED = ("run.json", "evaluation.json")
MB_PER_VECTOR = 4 / 1e6  # float32, times the representation's channels


class Shape(NamedTuple):
    """What the time of a step depends on, but for the device."""

    dataset: str
    method: str
    network: str  # as JSON, without the weights file
    crop: int
    batch: int
    world_size: int
    gpu: bool


class Rate(NamedTuple):
    """Seconds a step and a validation, and where they come from: a device's name, or None for the estimate."""

    step: float
    validation: float
    device: str | None


def supervised_only(suite: Suite, spec: RunSpec) -> bool:
    """Whether the method reads no unlabelled images."""
    return "unlabelled" not in spec.settings.streams


def batch(recipe_batch: int, batch_size: str) -> int:
    """Labelled images a step, as `u2pl.data.batches.TrainBatches` takes them."""
    return recipe_batch if batch_size == "per_stream" else max(1, recipe_batch // 2)


def steps_an_epoch(suite: Suite, spec: RunSpec) -> int:
    """Steps an epoch, as `u2pl.data.batches.TrainBatches` counts them: over the unlabelled list where it is used."""
    universe = spec.dataset.counts[suite.protocols[spec.protocol].universe]
    unlabelled = universe - spec.labelled
    by_labelled = isinstance(spec.settings, SupOnly) and spec.settings.suponly_epoch_unit == "labelled"
    whole = not by_labelled
    length = unlabelled if whole and unlabelled else spec.labelled
    return max(1, length // batch(spec.recipe.batch, spec.settings.batch_size))


def validations(spec: RunSpec) -> int:
    """Passes over the val list in a training: every `validate_every` epochs and after the last."""
    return math.ceil(spec.recipe.epochs / spec.recipe.validate_every)


def estimated(suite: Suite, spec: RunSpec) -> Rate:
    """The rate that the recipe guesses; `gpus` devices share a step, and half a batch takes half of it."""
    recipe = spec.recipe
    step = recipe.estimate.supervised_step if supervised_only(suite, spec) else recipe.estimate.semi_supervised_step
    share = batch(recipe.batch, spec.settings.batch_size) / recipe.batch
    return Rate(step * share / max(1, recipe.gpus), recipe.estimate.validation, None)


def seconds(suite: Suite, spec: RunSpec, rate: Rate) -> float:
    """Wall time of a training at a rate."""
    steps = spec.recipe.epochs * steps_an_epoch(suite, spec)
    return steps * rate.step + validations(spec) * rate.validation


def minutes(suite: Suite, spec: RunSpec, attempt: int = 1) -> int:
    """The time limit of a run's job. From the estimate, not from what was measured: it never moves by itself."""
    needed = MARGIN * seconds(suite, spec, estimated(suite, spec)) / 60
    return grown(attempt) * (START_MINUTES + math.ceil(needed))


def grown(attempt: int) -> int:
    """Factor on memory and minutes: a run goes on from its state, so later attempts need not grow without end."""
    return min(attempt, 3)


def weights_mb(suite: Suite, spec: RunSpec) -> float:
    """Size of weights.pt: last and best of what is evaluated."""
    return spec.recipe.estimate.weights_mb * 2 * spec.settings.kept


def state_mb(suite: Suite, spec: RunSpec) -> float:
    """Size of the state that a run in progress resumes from: networks, momentum, best weights and memory bank."""
    settings = spec.settings
    size = spec.recipe.estimate.weights_mb * (2 * settings.trained + settings.averaged + settings.kept)
    if isinstance(settings, Contrast) and settings.bank and settings.bank_in_checkpoint:
        vectors = settings.bank_size_background + settings.bank_size * (len(spec.dataset.classes) - 1)
        size += vectors * spec.recipe.network.representation * MB_PER_VECTOR
    return size


def _shape(spec: dict[str, Any], world_size: int, gpu: bool) -> Shape:
    """Of a spec as run.json holds it."""
    recipe = spec["recipe"]
    network = sorted((key, str(value)) for key, value in recipe["network"].items() if key != "weights")
    size = batch(recipe["batch"], spec["settings"]["batch_size"])
    return Shape(spec["dataset_name"], spec["method"], str(network), recipe["crop"], size, world_size, gpu)


def measured(suite: Suite, results: Path) -> dict[Shape, Rate]:
    """The rates of the finished runs below `results`/runs by shape: their mean on the device that ran most of them.

    Raises UserError if a run.json is not one.
    """
    found: dict[Shape, dict[str, list[Rate]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(results.glob("runs/*/run.json")):
        run = read_json(path)
        try:
            spec, took = run["spec"], run["provenance"]
            if spec["method"] not in suite.methods:
                continue
            own = SETTINGS[spec["method"]]
            streams = len(own(**{k: v for k, v in spec["settings"].items() if k in own.model_fields}).streams)
            device, recipe = took["device"], spec["recipe"]
            shape = _shape(spec, took["world_size"], not device.startswith("cpu"))
            step = shape.batch * streams / took["images_per_s"]
            # images_per_s counts the training alone; the validations share the rest of the wall time.
            rest = max(0.0, took["wall_time_s"] - step * took["steps"])
            rate = Rate(step, rest / math.ceil(recipe["epochs"] / recipe["validate_every"]), device)
            found[shape][device].append(rate)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise UserError(path, f"{type(error).__name__} {error}", "the record of a finished run") from error
    rates = {}
    for shape, devices in found.items():
        device, runs = max(devices.items(), key=lambda item: len(item[1]))
        rates[shape] = Rate(fmean(rate.step for rate in runs), fmean(rate.validation for rate in runs), device)
    return rates


@dataclass(frozen=True)
class Part:
    """The runs of one table, or of all."""

    name: str
    trainings: int
    shared: int  # of them, trainings that another table needs too
    done: int
    hours: float  # device hours of those to do
    measured: int  # of those to do, trainings with a measured rate

    @property
    def to_do(self) -> int:
        return self.trainings - self.done


@dataclass(frozen=True)
class Plan:
    """What `u2pl plan` prints. Sizes in MB: what stands on the disk, and what is still to come."""

    scale: str
    unit: str  # of the hours
    parts: list[Part]  # the last one is all of them, each training counted once
    disk: dict[str, tuple[float, float]]
    state: float  # MB, of the largest run in progress
    devices: list[str]  # that the rates were measured on


def plan(suite: Suite, names: list[str], data: Path, results: Path) -> Plan:
    """The plan of some tables, or of all if `names` is empty; `data` and `results` are the scale's folders.

    A run is done if its run.json and its evaluation.json stand; whether they are still current, a dry run tells.
    Raises UserError for an unknown table and a damaged run.json.
    """
    for name in names:
        if name not in suite.tables:
            raise UserError(f"table {name!r}", "no such table", nearest(name, list(suite.tables)))
    chosen = [name for name in suite.tables if not names or name in names]
    needed = {name: {run for cell in suite.cells if cell.table == name for run in cell.runs} for name in suite.tables}
    times = Counter(run for runs in needed.values() for run in runs)
    rates, specs = measured(suite, results), suite.runs
    everything = set().union(*(needed[name] for name in chosen))
    folders = {run: results / "runs" / run for run in everything}
    done = {run for run, path in folders.items() if all((path / file).exists() for file in FINISHED)}
    known: dict[str, Rate] = {}
    for run in everything - done:
        gpus = specs[run].recipe.gpus
        shape = _shape(specs[run].model_dump(mode="json"), max(1, gpus), gpus > 0)
        if shape in rates:
            known[run] = rates[shape]
    hours = {}
    for run in everything - done:
        rate = known.get(run) or estimated(suite, specs[run])
        hours[run] = max(1, specs[run].recipe.gpus) * seconds(suite, specs[run], rate) / 3600

    def part(name: str, runs: set[str]) -> Part:
        to_do = runs - done
        shared = sum(times[run] > 1 for run in runs)
        return Part(
            name, len(runs), shared, len(runs & done), sum(hours[run] for run in to_do), len(to_do & known.keys())
        )

    return Plan(
        scale=suite.scale,
        unit="GPU-hours" if any(specs[run].recipe.gpus for run in everything) else "hours",
        parts=[*(part(name, needed[name]) for name in chosen), part("in all", everything)],
        disk=_disk(suite, everything, folders, data),
        state=max((state_mb(suite, specs[run]) for run in everything - done), default=0.0),
        devices=sorted({rate.device for rate in known.values() if rate.device}),
    )


def _disk(suite: Suite, runs: set[str], folders: dict[str, Path], data: Path) -> dict[str, tuple[float, float]]:
    archives = prepared = (0.0, 0.0)
    for name in sorted({suite.runs[run].dataset_name for run in runs}):
        dataset = suite.datasets[name]
        files = [data / "archives" / archive.file for archive in dataset.archives.values()]
        archives = _add(archives, sum(map(_mb, files)), dataset.disk_mb.archives, all(p.exists() for p in files))
        manifest = data / name / "manifest.json"
        prepared = _add(prepared, _mb(manifest.parent), dataset.disk_mb.prepared, manifest.exists())
    weights = (0.0, 0.0)
    for run in runs:
        path = folders[run] / "weights.pt"
        weights = _add(weights, _mb(path), weights_mb(suite, suite.runs[run]), path.exists())
    return {"archives": archives, "prepared data": prepared, "weights.pt of the runs": weights}


def _add(total: tuple[float, float], here: float, guess: float, complete: bool) -> tuple[float, float]:
    return total[0] + here, total[1] + (0 if complete else max(0.0, guess - here))


def _mb(path: Path) -> float:
    """Size of a file or of all files below a folder; 0 if there is none."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def tables(plan: Plan) -> list["Table | str"]:
    """The plan for the terminal, 80 columns wide at most."""
    from rich.box import SIMPLE
    from rich.table import Table

    runs = Table(title=f"Trainings of scale {plan.scale}", box=SIMPLE, pad_edge=False)
    columns = ["table", "trainings", "shared", "done", "to do", plan.unit, "rate from"]
    for number, name in enumerate(columns):
        runs.add_column(name, justify="right" if 0 < number < 6 else "left", no_wrap=True)
    for part in plan.parts:
        if part is plan.parts[-1]:
            runs.add_section()
        kinds = {"measured": part.measured, "estimate": part.to_do - part.measured}
        source = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count) or "-"
        counts = (part.trainings, part.shared, part.done, part.to_do)
        runs.add_row(part.name, *map(str, counts), f"{part.hours:,.2f}", source)
    disk = Table(title="Disk, GB", box=SIMPLE, pad_edge=False)
    for number, name in enumerate(["what", "there now", "to come"]):
        disk.add_column(name, justify="right" if number else "left")
    for name, sizes in plan.disk.items():
        disk.add_row(name, *(f"{size / 1000:,.2f}" for size in sizes))
    notes = "shared: needed by another table too, and trained once. Estimates are guesses: params/recipes.yaml."
    if plan.devices:
        notes += f" Measured on: {', '.join(plan.devices)}."
    if plan.state:
        notes += f" A run in progress keeps a state of up to {plan.state / 1000:,.2f} GB."
    return [runs, disk, notes]
