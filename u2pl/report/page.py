"""results/<scale>/index.html: every table on one page without any other file, with what stands behind each number."""

import json
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from u2pl.errors import UserError
from u2pl.experiments.schedule import validation_mode
from u2pl.experiments.suite import Suite
from u2pl.files import atomic_path
from u2pl.folders import Results
from u2pl.report.cells import REDRAWN, read_cells
from u2pl.report.classes import read_classes
from u2pl.report.history import DIAGNOSTICS, read_history
from u2pl.report.origins import COPIED, RECONSTRUCTED, notes
from u2pl.report.runs import command, read_run
from u2pl.report.tables import DECIMALS, MARKS, NOTHING, best_of, verdict_notes

STATIC = files("u2pl.report") / "static"
POINTS = 40  # of a curve that explains another: the page holds those of every run


def write_page(suite: Suite, results: Path, cells_csv: Path, classes_csv: Path, target: Path) -> None:
    """Write the page from the collected cells, their classes and the files of their runs in `results`.

    Raises UserError if one is missing or malformed. Equal files give equal bytes.
    """
    cells = read_cells(cells_csv)
    wanted = sorted({run for runs in cells["run"] for run in runs.split()})
    if unknown := [run for run in wanted if run not in suite.runs]:
        raise UserError(cells_csv, f"the run {unknown[0]}", "the cells of today's params: `u2pl cells`")
    data: dict[str, Any] = {
        "runs": {run: _run(suite, results, run) for run in wanted},
        "diagnostics": [[name, title.replace("$", "")] for name, title in DIAGNOSTICS.items()],
        "classes": {
            name: [[label.name, "#{:02x}{:02x}{:02x}".format(*label.colour)] for label in dataset.classes]
            for name, dataset in sorted(suite.datasets.items())
        },
    }
    tables = [_table(suite, results, cells_csv, cells, name) for name in suite.tables]
    data["cells"] = [cell for table in tables for row in table["rows"] for cell in row["cells"]]
    _add_classes(suite, classes_csv, data["cells"])
    verdicts = [cell["verdict"] for cell in data["cells"]]
    for number, cell in enumerate(data["cells"]):
        cell["number"] = number  # the position in the data, which the cell's button names
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda value: NOTHING if value is None else f"{value:.{DECIMALS}f}"
    text = environment.from_string(_static("page.html")).render(
        scale=suite.scale,
        title=suite.params.title,
        synthetic=suite.params.synthetic,
        seeds=_span(cells["n"][cells["n"] > 0]),
        tables=tables,
        # Of synthetic data every verdict is the same, and the page says it once.
        verdicts={} if suite.params.synthetic else dict(sorted(Counter(filter(None, verdicts)).items())),
        n_runs=len(wanted),
        data=_embedded(data),
        marks={"copied": COPIED, "reconstructed": RECONSTRUCTED},
        css=_static("page.css"),
        script=_static("page.js"),
    )
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _span(counts: pd.Series) -> str:
    """1 seed, 10 seeds, 1 to 4 seeds: rows may have more than the scale."""
    least, most = (int(value) for value in (counts.min(), counts.max())) if len(counts) else (0, 0)
    return f"{least} seed{'' if least == 1 else 's'}" if least == most else f"{least} to {most} seeds"


def _static(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def _embedded(value: Any) -> str:
    """JSON that may stand in a <script>: no text of it can end the element or open a comment."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _table(suite: Suite, results: Path, cells_csv: Path, cells: pd.DataFrame, name: str) -> dict[str, Any]:
    table = suite.tables[name]
    many = len({column.protocol for column in table.columns}) > 1
    own = cells[cells["table"] == name]
    rows: list[dict[str, Any]] = []
    for row in table.rows:
        found = [
            own[(own["row"] == row.title) & (own["protocol"] == c.protocol) & (own["fraction"] == c.fraction)]
            for c in table.columns
        ]
        if any(len(part) != 1 for part in found):
            raise UserError(cells_csv, f"no cell or several for {name}, {row.title!r}", "one a column")
        origin = {key: str(found[0].iloc[0][key]) for key in ("source", "copied_from")}
        own_cells = [_cell(suite, results, part.iloc[0]) for part in found]
        rows.append({"title": row.title, **origin, "cells": own_cells})
    best = [
        best_of([row["cells"][c]["mean"] for row in rows if row["cells"][c]["mean"] is not None])
        for c in range(len(table.columns))
    ]
    title = re.sub(r"^table(?=\d)", "Table ", name).capitalize()
    for line in rows:
        for cell, top in zip(line["cells"], best, strict=True):
            cell |= {"title": title, "best": cell["mean"] == top}
    headers = [f"{cell['protocol']} " * many + cell["column"] for cell in rows[0]["cells"]] if rows else []
    drawn = own[own["lists"] == REDRAWN]["row"].unique()
    trained = [(row["title"], row["title"] in drawn) for row in rows if row["source"] != "quoted"]
    parts = [*verdict_notes(list(own["verdict"]), trained, suite.params.equivalence_margin)]
    said = " ".join([*parts, *notes((row["title"], row["source"], row["copied_from"]) for row in rows)])
    return {"name": name, "title": title, "caption": table.caption, "notes": said, "headers": headers, "rows": rows}


def _cell(suite: Suite, results: Path, cell: pd.Series) -> dict[str, Any]:
    runs = str(cell["run"]).split()
    values: dict[str, Any] = {key: str(cell[key]) for key in ("table", "row", "column", "protocol", "source", "remark")}
    values |= {key: _number(cell[key]) for key in ("paper", "mean", "std", "low", "high")}
    values["verdict"] = cell["verdict"] or None
    values |= {key: _number(cell[key]) for key in ("q", "moderated_low", "moderated_high")}
    # Without a known spread there is nothing to moderate.
    shown = cell["verdict"] in MARKS and values["moderated_low"] is not None
    values["moderated_verdict"] = cell["moderated_verdict"] if shown else None
    values["fraction"] = str(cell["fraction"])
    again = command(suite, results, runs) if runs else None
    return values | {"n": int(cell["n"]), "checkpoint": str(cell["checkpoint"]), "runs": runs, "command": again}


def _add_classes(suite: Suite, classes_csv: Path, cells: list[dict[str, Any]]) -> None:
    """Give each trained cell its intervals, of the mean first: [low, high] over seeds, then over images, per class.

    Raises UserError if a cell's classes are missing, or are of other runs or not those of its data set.
    """
    places = ["table", "row", "protocol", "fraction"]
    found = dict(list(read_classes(classes_csv).groupby(places, sort=False)))
    for cell in cells:
        place = tuple(cell.pop(key) if key == "fraction" else cell[key] for key in places)
        if not cell["runs"]:
            continue
        rows, first = found.get(place), cell["runs"][0]
        expected = 1 + len(suite.runs[first].dataset.classes)
        if rows is None or len(rows) != expected or set(rows["image_run"]) != {first}:
            count = 0 if rows is None else len(rows)
            where = f"{cell['table']}, {cell['row']}, {cell['protocol']} {place[-1]}"
            raise UserError(classes_csv, f"{count} rows for {where}", f"{expected} of {first}: `u2pl cells`")
        cell["images"] = int(rows["images"].iloc[0])
        ends = rows[["low", "high", "image_low", "image_high"]].to_numpy()
        cell["intervals"] = [[None if pd.isna(end) else round(float(end), 2) for end in row] for row in ends]


def _points(history: pd.DataFrame, name: str) -> list[list[float]]:
    """Epochs and values of a column, of evenly spread epochs with the first and the last; none if there is none."""
    known = history[["epoch", name]].dropna() if name in history else history.head(0)
    count = len(known)
    kept = sorted({round(i * (count - 1) / max(1, min(POINTS, count) - 1)) for i in range(min(POINTS, count))})
    return [[int(known["epoch"].iloc[i]), round(float(known[name].iloc[i]), 3)] for i in kept]


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else round(float(value), 4)


def _run(suite: Suite, results: Path, run: str) -> dict[str, Any]:
    """What the page tells of a run: scores, curve, IoU by class, departures from the paper's preset, provenance."""
    folder, spec = Results(results).run(run), suite.runs[run]
    done = read_run(suite, results, run)
    record, provenance = done.record, done.record.provenance
    whole = read_history(folder)
    history = whole[["epoch", "val_miou"]].dropna()
    settings = spec.settings.model_dump(mode="json")
    mode = validation_mode(spec.settings.selected_by, spec.dataset.evaluation.mode)
    for scores in done.evaluation.checkpoints.values():
        if len(scores.iou) != (n_classes := len(spec.dataset.classes)):
            raise UserError(folder.evaluation, f"{len(scores.iou)} IoUs", f"{n_classes} classes")
    return {
        "seed": spec.seed,
        "dataset": spec.dataset_name,
        "scores": {
            name: {
                "miou": round(scores.miou, 4),
                "iou": [None if value is None else round(value, 2) for value in scores.iou],
            }
            for name, scores in done.evaluation.checkpoints.items()
        },
        "best_epoch": record.best_epoch,
        "epochs": record.epochs,
        "validated": "centre crops" if mode == "centre_crop" else "sliding windows",
        "curve": [[int(e), round(float(v), 3)] for e, v in zip(history["epoch"], history["val_miou"], strict=True)],
        "diagnostics": {name: points for name in DIAGNOSTICS if (points := _points(whole, name))},
        "departures": [[key, settings[key], paper] for key, paper in sorted(spec.departures.items())],
        "commit": provenance.git.commit,
        "dirty": provenance.git.dirty,
        "device": provenance.device,
        "seconds": round(provenance.wall_time_s, 1),
        "torch": provenance.libraries.get("torch"),
    }
