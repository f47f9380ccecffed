"""`u2pl plan`: what the tables of a scale take before anything is submitted, and what is done."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from u2pl.experiments.cost import Rate, estimated, measured, relative_step, seconds, shape_of, state_mb, weights_mb
from u2pl.experiments.read import pick
from u2pl.experiments.records import recorded
from u2pl.experiments.suite import Suite
from u2pl.folders import Data, Results, Run

if TYPE_CHECKING:
    from rich.table import Table


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
    methods: dict[str, tuple[float, float]]  # title -> time and peak memory of a step, relative to Mean Teacher's


def plan(suite: Suite, names: list[str], data: Path, results: Path) -> Plan:
    """The plan of some tables, or of all if `names` is empty; `data` and `results` are the scale's folders.

    A run is done if its run.json and its evaluation.json stand; whether they are still current, a dry run tells.
    Raises UserError for an unknown table and a damaged run.json.
    """
    for name in names:
        pick(suite.tables, name, f"table at scale {suite.scale!r}")
    chosen = [name for name in suite.tables if not names or name in names]
    needed = {name: {run for cell in suite.cells if cell.table == name for run in cell.runs} for name in suite.tables}
    times = Counter(run for runs in needed.values() for run in runs)
    rates, specs = measured(suite, results), suite.runs
    everything = set().union(*(needed[name] for name in chosen))
    folders = {run: Results(results).run(run) for run in everything}
    done = {run for run, path in folders.items() if path.record.exists() and path.evaluation.exists()}
    known: dict[str, Rate] = {}
    for run in everything - done:
        gpus = specs[run].recipe.gpus
        shape = shape_of(recorded(specs[run]), max(1, gpus), gpus > 0)
        if shape in rates:
            known[run] = rates[shape]
    hours = {}
    for run in everything - done:
        rate = known.get(run) or estimated(specs[run])
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
        disk=_disk(suite, everything, folders, Data(data)),
        state=max((state_mb(specs[run]) for run in everything - done), default=0.0),
        devices=sorted({rate.device for rate in known.values() if rate.device}),
        methods={
            suite.methods[spec.method].title: (relative_step(spec), spec.settings.step_memory)
            for spec in (specs[run] for run in suite.runs if run in everything)
        },
    )


def _disk(suite: Suite, runs: set[str], folders: dict[str, Run], data: Data) -> dict[str, tuple[float, float]]:
    archives = prepared = (0.0, 0.0)
    for name in sorted({suite.runs[run].dataset_name for run in runs}):
        dataset = suite.datasets[name]
        files = [data.archives / archive.file for archive in dataset.archives.values()]
        archives = _add(archives, sum(map(_mb, files)), dataset.disk_mb.archives, all(p.exists() for p in files))
        manifest = data.prepared(name).manifest
        prepared = _add(prepared, _mb(manifest.parent), dataset.disk_mb.prepared, manifest.exists())
    weights = (0.0, 0.0)
    for run in runs:
        path = folders[run].weights
        weights = _add(weights, _mb(path), weights_mb(suite.runs[run]), path.exists())
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
    steps = Table(title="A step, relative to MT", box=SIMPLE, pad_edge=False)
    for number, name in enumerate(["method", "time, estimated", "memory"]):
        steps.add_column(name, justify="right" if number else "left")
    for title, (time, memory) in plan.methods.items():
        steps.add_row(title, f"{time:.2f}", f"{memory:.2f}")
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
    return [runs, steps, disk, notes]
