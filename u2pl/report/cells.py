"""The one long table of results: a row for each cell of each table."""

import json
import math
from pathlib import Path
from statistics import fmean, stdev

import pandas as pd

from u2pl.errors import UserError
from u2pl.experiments.schema import Suite
from u2pl.files import atomic_path, read_json

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
    "n",
    "mean",
    "std",
    "checkpoint",
    "run",
]


def read_miou(evaluation: Path, checkpoint: str) -> float:
    """Mean IoU in percent of a checkpoint, "best" or "last"; raises UserError if the file lacks it."""
    content = read_json(evaluation)
    try:
        miou = content[checkpoint]["miou"]
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(evaluation, f"no {checkpoint}.miou", "the evaluation of a run") from error
    if isinstance(miou, bool) or not isinstance(miou, int | float) or not 0 <= miou <= 100:
        raise UserError(evaluation, f"{checkpoint}.miou = {miou}", "a percentage from 0 to 100")
    return float(miou)


def only(suite: Suite, table: str) -> Suite:
    """The suite with the cells of one table, which can then be made without the runs of the others."""
    return suite.model_copy(update={"cells": [cell for cell in suite.cells if cell.table == table]})


def collect(suite: Suite, results: Path) -> pd.DataFrame:
    """Gather every cell of `suite` from `results`/runs/<run id>/evaluation.json.

    Returns one row per cell in the suite's order, with the columns `COLUMNS`. `mean` and `std` are in percent mIoU over
    the `n` seeds of the cell; `std` is the sample standard deviation (ddof=1) and NaN for a single seed. Quoted cells
    have n = 0 and no mean. `overrides` is compact JSON and `run` the run ids, separated by spaces.

    Raises UserError if an evaluation is missing or malformed.
    """
    # Tables share runs, so each evaluation is read once.
    wanted = dict.fromkeys((run, cell.checkpoint) for cell in suite.cells for run in cell.runs)
    miou = {key: read_miou(results / "runs" / key[0] / "evaluation.json", key[1]) for key in wanted}
    rows = []
    for cell in suite.cells:
        values = [miou[run, cell.checkpoint] for run in cell.runs]
        rows.append(
            {
                **cell.model_dump(exclude={"overrides", "runs"}),
                "overrides": json.dumps(cell.overrides, sort_keys=True, separators=(",", ":")),
                "n": len(values),
                "mean": fmean(values) if values else math.nan,
                "std": stdev(values) if len(values) > 1 else math.nan,
                "run": " ".join(cell.runs),
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def write_cells(suite: Suite, results: Path, target: Path) -> None:
    """Write `collect(suite, results)` to the CSV file `target`, atomically."""
    cells = collect(suite, results)
    with atomic_path(target) as temporary:
        cells.to_csv(temporary, index=False, lineterminator="\n")


def read_cells(path: Path) -> pd.DataFrame:
    """Read a `cells.csv` back; raises UserError if it is missing or lacks a column."""
    numbers = ["paper", "mean", "std"]
    try:
        # Only numbers may be missing: a row called "None" is a title.
        cells = pd.read_csv(path, keep_default_na=False, na_values={name: [""] for name in numbers})
    except FileNotFoundError as error:
        raise UserError(path, "no file", "the collected cells") from error
    except (OSError, ValueError) as error:
        raise UserError(path, error, "a CSV file of cells") from error
    missing = [name for name in COLUMNS if name not in cells]
    if missing:
        raise UserError(path, f"no column {', '.join(missing)}", f"the columns {', '.join(COLUMNS)}")
    try:
        return cells.astype({**dict.fromkeys(numbers, float), "n": int, "labelled": int, "row": str, "fraction": str})
    except ValueError as error:
        raise UserError(path, error, "numbers in the columns labelled, n, paper, mean and std") from error
