"""`u2pl show`: where a number comes from, as recorded in run.json when it was trained."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from u2pl.errors import UserError
from u2pl.experiments.confusions import CHECKPOINTS
from u2pl.experiments.read import pick
from u2pl.experiments.records import plain
from u2pl.experiments.suite import Cell, Suite
from u2pl.report.cells import COLUMNS, NUMBERS, collect
from u2pl.report.classes import Classes
from u2pl.report.origins import remark
from u2pl.report.runs import command, read_run
from u2pl.report.tables import DECIMALS

Record = dict[str, Any]  # run.json with `miou`: percent of the "last" and the "best" checkpoint


def find_cell(suite: Suite, table: str, row: str, column: str) -> Cell:
    """The cell of a table by its row's title and its column: a fraction or the whole heading, `1/8` or `1/8 (1323)`.

    Where columns of several protocols have the fraction, the protocol stands before it: `pascal_classic 1/8`.
    Raises UserError with the nearest name for an unknown one.
    """
    pick(suite.tables, table, f"table at scale {suite.scale!r}")
    rows: dict[str, list[Cell]] = {}
    for cell in (cell for cell in suite.cells if cell.table == table):
        rows.setdefault(cell.row, []).append(cell)
    names: dict[str, list[Cell]] = {}
    for cell in pick(rows, row, f"row of {table}"):
        for heading in (cell.fraction, cell.column):
            names.setdefault(heading, []).append(cell)
            names.setdefault(f"{cell.protocol} {heading}", []).append(cell)
    if len(found := pick(names, column, f"column of {table}")) > 1:
        protocols = " or ".join(repr(f"{cell.protocol} {column}") for cell in found)
        raise UserError(f"{table}: column {column!r}", f"{len(found)} columns", protocols)
    return found[0]


def read_record(suite: Suite, results: Path, run: str) -> Record:
    """What run.json says, and the evaluations. Raises UserError as `read_run` does."""
    found = read_run(suite, results, run)
    return plain(found.record) | {"miou": found.miou}


def describe_cell(suite: Suite, results: Path, cell: Cell) -> dict[str, Any]:
    """A cell with its statistics as in cells.csv and classes.csv, and the records of its runs, as values for JSON."""
    records = [read_record(suite, results, run) for run in cell.runs]
    row = _statistics(suite, results, cell)
    numbers: dict[str, Any] = {
        key: None if math.isnan(row[key]) else float(row[key]) for key in NUMBERS if key != "paper"
    }
    numbers |= {"n": len(records)} | {key: row[key] for key in ("covered", "verdict", "moderated_verdict", "lists")}
    numbers |= {"margin": suite.params.equivalence_margin, "declared": f"params/tables/{cell.table}.yaml"}
    again = command(suite, results, cell.runs) if cell.runs else None
    classes = {cell.checkpoint: _plain(Classes(suite, results).of(cell.runs, cell.checkpoint))}
    return {"cell": cell.model_dump(mode="json") | numbers, "runs": records, "classes": classes, "command": again}


def _statistics(suite: Suite, results: Path, cell: Cell) -> dict[str, Any]:
    """The cell's row of cells.csv; without what depends on other cells while runs of these are not finished."""
    try:
        return dict(zip(COLUMNS, collect(suite, results).iloc[suite.cells.index(cell)], strict=True))
    except UserError:  # of another cell: the runs of this one were read before
        frame = collect(suite.model_copy(update={"cells": [cell]}), results)
    unknown = {name: math.nan for name in COLUMNS if name == "q" or name.startswith("moderated_")}
    return dict(zip(COLUMNS, frame.iloc[0], strict=True)) | unknown | {"moderated_verdict": ""}


def describe_run(suite: Suite, results: Path, run: str) -> dict[str, Any]:
    """The record of a run, its classes by checkpoint and the cells that show it, as plain values for JSON."""
    record = read_record(suite, results, run)
    keys = {"table", "row", "column", "protocol", "checkpoint"}
    shown = [cell.model_dump(mode="json", include=keys) for cell in suite.cells if run in cell.runs]
    of = Classes(suite, results).of
    classes = {name: _plain(of([run], name)) for name in CHECKPOINTS}
    return {"shown_in": shown, "runs": [record], "classes": classes, "command": command(suite, results, [run])}


def _plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without NaN, which JSON has not."""
    return [{key: None if value != value else value for key, value in row.items()} for row in rows]


def render(description: dict[str, Any], console: Console) -> None:
    """Print what `describe_cell` or `describe_run` returned."""
    records: list[Record] = description["runs"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in [*_heading(description), *_origin(records)]:
        grid.add_row(label, Text(text))
    console.print(grid)
    if len(records) > 1:
        console.print(_seeds(records))
    for checkpoint, rows in description["classes"].items():
        if rows:
            console.print(_classes(checkpoint, rows, records[0]))
    if description["command"]:
        # Unwrapped, to be copied.
        console.print(Text("recompute", style="bold"))
        console.print(Text(description["command"]), soft_wrap=True)


def _heading(description: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is shown: the cell with ours and the paper's number, or the run with both of its checkpoints."""
    cell = description.get("cell")
    if cell is None:
        (record,) = description["runs"]
        best, last = (f"{record['miou'][name]:.{DECIMALS}f}" for name in ("best", "last"))
        yield "run", record["id"]
        yield "mIoU", f"best checkpoint {best} % (epoch {record['best_epoch']} of {record['epochs']}), last {last} %"
        places = [f"{c['table']}, {c['row']}, {c['protocol']} {c['column']}" for c in description["shown_in"]]
        yield from _over_images(description)
        yield "shown in", "\n".join(places) or "no table of the present params"
        return
    yield "cell", f"{cell['table']}, {cell['row']}, {cell['protocol']} {cell['column']}"
    paper = "no number" if cell["paper"] is None else f"{cell['paper']:.{DECIMALS}f} %"
    if cell["source"] == "quoted":
        yield "value", paper
        yield "remark", remark(cell["source"], cell["copied_from"])
        yield "declared", cell["declared"]
        return
    spread = "" if cell["std"] is None else f" ± {cell['std']:.{DECIMALS}f}"
    seeds = "1 seed" if cell["n"] == 1 else f"mean ± sample standard deviation of {cell['n']} seeds"
    yield "value", f"{cell['mean']:.{DECIMALS}f}{spread} % mIoU of the {cell['checkpoint']} checkpoint, {seeds}"
    if cell["low"] is not None:
        yield (
            "interval",
            f"{cell['low']:.{DECIMALS}f} to {cell['high']:.{DECIMALS}f} % over seeds (95 % t interval of the mean)",
        )
    yield from _over_images(description)
    yield "paper", paper
    if cell["verdict"]:
        yield "verdict", _verdict(cell)
        yield from _of_all_cells(cell)
    if text := remark(cell["source"], cell["copied_from"]):
        yield "remark", text
    yield ("run" if cell["n"] == 1 else "runs"), "\n".join(cell["runs"])


def _over_images(description: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The bootstrap of the mIoU of the first run: beside the seeds, never instead."""
    lines = []
    for checkpoint, (mean, *_) in description["classes"].items():
        if mean["image_low"] is not None:
            ends = f"{mean['image_low']:.{DECIMALS}f} to {mean['image_high']:.{DECIMALS}f} %"
            network = f"seed {description['runs'][0]['spec']['seed']}, {checkpoint}, {mean['image_iou']:.{DECIMALS}f} %"
            lines.append(f"{ends} over {mean['images']} validation images, one network ({network}; 95 % bootstrap)")
        elif not mean["images"]:
            lines = [f"none over validation images: no images.npz; `u2pl evaluate {mean['image_run']}` writes it"]
    if lines:
        yield "images", "\n".join(lines)


def _classes(checkpoint: str, rows: list[dict[str, Any]], first: Record) -> Table:
    """IoU per class with both intervals, those over images only where matrices per image were kept."""
    many = max(row["n"] for row in rows) > 1
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    over_images = f"over images, seed {first['spec']['seed']}"
    shown = [f"IoU %, {checkpoint}", *["±", "over seeds"] * many, *[over_images] * (rows[0]["images"] > 0)]
    table.add_column("class")
    for heading in shown:
        table.add_column(heading, justify="right", no_wrap=True)

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.{DECIMALS}f}"

    def interval(row: dict[str, Any], low: str, high: str) -> str:
        return "–" if row[low] is None else f"{number(row[low])} to {number(row[high])}"

    for row in rows:
        values = [number(row["mean"])]
        values += [number(row["std"]), interval(row, "low", "high")] * many
        values += [interval(row, "image_low", "image_high")] * (row["images"] > 0)
        table.add_row(Text(row["class"]), *values)
    return table


def _verdict(cell: dict[str, Any]) -> str:
    if cell["difference"] is None:
        return f"{cell['verdict']}: the data are synthetic"
    covers = {"yes": ", the interval holds the paper's number", "no": ", the interval lies beside the paper's number"}
    difference = f"ours minus the paper's {cell['difference']:+.{DECIMALS}f}{covers.get(cell['covered'], '')}"
    return f"{cell['verdict']} at a margin of {cell['margin']:g} mIoU; {difference}"


def _of_all_cells(cell: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the other cells of the scale say of the verdict, beside it."""
    if cell["difference"] is not None and cell["moderated_low"] is not None:
        ends = f"{cell['moderated_low']:.{DECIMALS}f} to {cell['moderated_high']:.{DECIMALS}f} %"
        yield "  moderated", f"{cell['moderated_verdict']}, {ends} (variance moderated over the cells of the scale)"
    if cell["q"] is not None:
        yield "  q", f"{cell['q']:.3f} over the cells of {cell['table']} (Benjamini-Hochberg; p {cell['p']:.3f})"


def _origin(records: list[Record]) -> Iterator[tuple[str, str]]:
    """Labels and texts of what the runs were made from; a text that is not equal for all stands once a seed.

    Hashes are SHA-256; they and their labels fit 80 columns.
    """

    def row(label: str, text: Callable[[Record, dict[str, Any]], str]) -> tuple[str, str]:
        texts = {record["spec"]["seed"]: text(record, record["provenance"]) for record in records}
        if len(set(texts.values())) == 1:
            return label, next(iter(texts.values()))
        return label, "\n".join(f"seed {seed}: {value}" for seed, value in texts.items())

    if not records:
        return
    yield row("code", lambda r, p: _code(p["git"]))
    yield row("factors", lambda r, p: _factors(r["spec"]))
    yield row("recipe", lambda r, p: _listed(flat(r["spec"]["recipe"]), " "))
    yield row("scoring", lambda r, p: _listed(r["spec"]["dataset"]["evaluation"], " "))
    # The seed is a part of the params, and so of their hash.
    yield row("params", lambda r, p: p["params_sha256"])
    yield row("split", lambda r, p: _split(p["split"]))
    yield row("  manifest", lambda r, p: p["split_sha256"])
    yield row("data", lambda r, p: f"{r['spec']['dataset_name']}: {_listed(p['data']['counts'], ' ')}")
    yield row("  manifest", lambda r, p: p["data_sha256"])
    yield row("  content", lambda r, p: p["data"]["content_sha256"])
    yield row("archives", lambda r, p: "\n".join(f"{n}\n{h}" for n, h in sorted(p["data"]["archives"].items())))
    yield row("encoder", lambda r, p: _encoder(p["encoder_weights"]))
    if len(records) == 1:
        yield row("weights", lambda r, p: r["files"]["weights.pt"])
        yield row("seed", lambda r, p: str(p["seed"]))
        yield row("took", _took)
    yield row("machine", lambda r, p: _machine(p))
    yield row("software", lambda r, p: _listed({k: v for k, v in p["libraries"].items() if v}, " "))


def _seeds(records: list[Record]) -> Table:
    """What differs between the seeds of a cell by nature; hashes by their first digits, whole in the JSON."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    headings = ("seed", "best %", "epoch", "last %", "time", "images/s", "MiB", "weights")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "weights" else "right", no_wrap=True)
    for r in records:
        p = r["provenance"]
        miou = [f"{r['miou'][name]:.{DECIMALS}f}" for name in ("best", "last")]
        speed = [_duration(p["wall_time_s"]), f"{p['images_per_s']:.1f}", f"{p['peak_memory_mb']:.0f}"]
        table.add_row(str(p["seed"]), miou[0], str(r["best_epoch"]), miou[1], *speed, r["files"]["weights.pt"][:12])
    return table


def _code(git: dict[str, Any]) -> str:
    if git["commit"] is None:
        return "not in a git checkout"
    if not git["dirty"]:
        return f"commit {git['commit']}, no local changes"
    return f"commit {git['commit']}\nwith local changes, whose hash is\n{git['diff_sha256']}"


def _factors(spec: dict[str, Any]) -> str:
    """Factor values, those first that differ from the paper preset."""
    departures = spec["departures"]
    settings = {key: value for key, value in spec["settings"].items() if key != "checkpoint_selection"}
    lines = [f"{key} = {settings[key]} (paper preset: {paper})" for key, paper in sorted(departures.items())]
    rest = {key: value for key, value in settings.items() if key not in departures}
    return "\n".join([*lines, f"as the paper preset: {_listed(rest, ' = ')}"])


def _split(split: dict[str, Any]) -> str:
    counts = split["counts"]
    commit = f" at commit {split['commit']}" if "commit" in split else f", seed {split['seed']}"
    lists = f"{counts['labeled']} labelled, {counts['unlabeled']} unlabelled, {counts['val']} validation images"
    return f"{lists}; {split['source']}{commit}"


def _encoder(weights: dict[str, str] | None) -> str:
    return f"{weights['file']}\n{weights['sha256']}" if weights else "random initialisation"


def _took(record: Record, provenance: dict[str, Any]) -> str:
    speed, memory = provenance["images_per_s"], provenance["peak_memory_mb"]
    return f"{_duration(provenance['wall_time_s'])}, {speed:.1f} images/s, peak memory {memory:.0f} MiB"


def _machine(provenance: dict[str, Any]) -> str:
    count = provenance["world_size"]
    processes = "1 process" if count == 1 else f"{count} processes"
    threads = "1 thread" if provenance["threads"] == 1 else f"{provenance['threads']} threads"
    device, cpu = provenance["device"], provenance["cpu"]
    return f"{device}, {processes} of {threads}\nCPU {cpu}\n{provenance['platform']}"


def _duration(seconds: float) -> str:
    whole = math.ceil(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, by dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        result |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return result


def _listed(values: dict[str, Any], between: str) -> str:
    return ", ".join(f"{key}{between}{value}" for key, value in values.items())
