"""The long table of results, one row per cell of every table, and the paired differences between table rows."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from u2pl.errors import UserError
from u2pl.experiments.suite import Cell, Suite
from u2pl.files import atomic_path
from u2pl.report.origins import remark
from u2pl.report.runs import read_run
from u2pl.report.statistics import Sample, verdict

COLUMNS = [
    "table",
    "row",
    "column",
    "fraction",
    "protocol",
    "labelled",
    "method",
    "fidelity",
    "overrides",
    "source",
    "paper",
    "copied_from",
    "remark",
    "n",
    "mean",
    "std",
    "low",
    "high",
    "best_mean",
    "best_std",
    "last_mean",
    "last_std",
    "difference",
    "covered",
    "verdict",
    "checkpoint",
    "run",
]
NUMBERS = ["paper", "mean", "std", "low", "high", "best_mean", "best_std", "last_mean", "last_std", "difference"]
COMPARISON_COLUMNS = [
    "table",
    "protocol",
    "fraction",
    "column",
    "row",
    "checkpoint",
    "against",
    "against_checkpoint",
    "n",
    "difference",
    "std",
    "low",
    "high",
    "p",
]
Miou = dict[tuple[str, str], float]  # by run and checkpoint


def suite_of_table(suite: Suite, table: str) -> Suite:
    """The suite with the cells of one table, which can then be made without the runs of the others."""
    return suite.model_copy(update={"cells": [cell for cell in suite.cells if cell.table == table]})


def read_all(suite: Suite, results: Path) -> Miou:
    """The mIoU of both checkpoints of every run of the cells; tables share runs, so each is read once."""
    runs = dict.fromkeys(run for cell in suite.cells for run in cell.runs)
    read = {run: read_run(suite, results, run) for run in runs}
    return {(run, checkpoint): value for run in runs for checkpoint, value in read[run].miou.items()}


def collect(suite: Suite, results: Path) -> pd.DataFrame:
    """Gather every cell of `suite` from the finished runs in `results`/runs.

    Returns one row per cell in the suite's order, with the columns `COLUMNS`; docs/results.md explains them. `mean`,
    `std` and the t interval `low` to `high` are in percent mIoU over the `n` seeds of the cell and of the checkpoint it
    reports; `std` is the sample standard deviation (ddof=1) and NaN for a single seed. Quoted cells have n = 0 and no
    mean. `overrides` is compact JSON and `run` the run ids, separated by spaces.

    Raises UserError if a run is not finished or its files do not fit together.
    """
    miou = read_all(suite, results)
    rows = []
    for cell in suite.cells:
        samples = {name: Sample.of([miou[run, name] for run in cell.runs]) for name in ("best", "last")}
        ours = samples[cell.checkpoint]
        low, high = ours.interval
        rows.append(
            {
                **cell.model_dump(exclude={"overrides", "runs"}),
                "overrides": json.dumps(cell.overrides, sort_keys=True, separators=(",", ":")),
                "n": ours.n,
                "mean": ours.mean,
                "std": ours.std,
                "low": low,
                "high": high,
                "remark": remark(cell.source, cell.copied_from),
                **{f"{name}_mean": sample.mean for name, sample in samples.items()},
                **{f"{name}_std": sample.std for name, sample in samples.items()},
                **_against_paper(cell, ours, suite),
                "run": " ".join(cell.runs),
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def _against_paper(cell: Cell, ours: Sample, suite: Suite) -> dict[str, Any]:
    if cell.source == "quoted" or cell.paper is None:
        return {"difference": math.nan, "covered": "", "verdict": ""}
    if suite.params.synthetic:  # the paper's number is of other data
        return {"difference": math.nan, "covered": "", "verdict": "not comparable"}
    low, high = ours.interval
    return {
        "difference": ours.mean - cell.paper,
        "covered": ("yes" if low <= cell.paper <= high else "no") if ours.spread_known else "",
        "verdict": verdict(ours, cell.paper, suite.params.equivalence_margin),
    }


def compare(suite: Suite, results: Path) -> pd.DataFrame:
    """Paired differences between the rows of each table, column by column: by seed, since splits and seeds are shared.

    Each trained row is compared with the table's first trained row, and with the one above it where that is another:
    what a method adds to the baseline, and what the last step added. `difference` is the row's mIoU minus that of the
    row `against`, in percent, with the sample standard deviation of the `n` differences, their t interval and the `p`
    of the paired t test (NaN where no spread is known). Cells that show the same trainings are left out.

    Raises UserError if a run is not finished or its files do not fit together.
    """
    miou = read_all(suite, results)
    columns: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in suite.cells:
        if cell.runs:
            columns.setdefault((cell.table, cell.protocol, cell.fraction), []).append(cell)
    rows = []
    for cells in columns.values():
        for above, cell in zip(cells, cells[1:], strict=False):
            for other in [cells[0]] if above is cells[0] else [cells[0], above]:
                # Both begin with the scale's seeds in the same order; a baseline may have more of them.
                pairs = list(zip(cell.runs, other.runs, strict=False))
                if cell.checkpoint == other.checkpoint and all(a == b for a, b in pairs):
                    continue
                sample = Sample.of([miou[a, cell.checkpoint] - miou[b, other.checkpoint] for a, b in pairs])
                low, high = sample.interval
                rows.append(
                    {
                        **cell.model_dump(include={"table", "protocol", "fraction", "column", "row", "checkpoint"}),
                        "against": other.row,
                        "against_checkpoint": other.checkpoint,
                        "n": sample.n,
                        "difference": sample.mean,
                        "std": sample.std,
                        "low": low,
                        "high": high,
                        "p": sample.p,
                    }
                )
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)


def write_cells(suite: Suite, results: Path, target: Path) -> None:
    """Write `collect(suite, results)` to the CSV file `target`, atomically."""
    _write(collect(suite, results), target)


def write_comparisons(suite: Suite, results: Path, target: Path) -> None:
    """Write `compare(suite, results)` to the CSV file `target`, atomically."""
    _write(compare(suite, results), target)


def _write(frame: pd.DataFrame, target: Path) -> None:
    with atomic_path(target) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")


def read_cells(path: Path) -> pd.DataFrame:
    """Read a `cells.csv` back; raises UserError if it is missing or lacks a column."""
    try:
        # Only numbers may be missing: a row called "None" is a title.
        cells = pd.read_csv(path, keep_default_na=False, na_values={name: [""] for name in NUMBERS})
    except FileNotFoundError as error:
        raise UserError(path, "no file", "the collected cells") from error
    except (OSError, ValueError) as error:
        raise UserError(path, error, "a CSV file of cells") from error
    missing = [name for name in COLUMNS if name not in cells]
    if missing:
        raise UserError(path, f"no column {', '.join(missing)}", f"the columns {', '.join(COLUMNS)}")
    try:
        cells = cells.astype({**dict.fromkeys(NUMBERS, float), "n": int, "labelled": int, "row": str, "fraction": str})
    except ValueError as error:
        raise UserError(path, error, f"numbers in the columns labelled, n, {', '.join(NUMBERS)}") from error
    if np.isinf(cells[NUMBERS]).any(axis=None):
        raise UserError(path, "an infinite number", f"finite numbers in the columns {', '.join(NUMBERS)}")
    return cells
