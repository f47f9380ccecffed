"""The long table of results, one row per cell of every table, and the paired differences between table rows."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from u2pl.errors import UserError
from u2pl.experiments.suite import Cell, Suite
from u2pl.files import atomic_path
from u2pl.report.moderation import Prior, fitted
from u2pl.report.origins import remark
from u2pl.report.runs import read_run
from u2pl.report.statistics import ALPHA, Sample, Verdict, false_discovery, pooled, verdict

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
    "p",
    "q",
    "moderated_std",
    "moderated_low",
    "moderated_high",
    "moderated_verdict",
    "lists",
    "checkpoint",
    "run",
]
NUMBERS = ["paper", "mean", "std", "low", "high", "best_mean", "best_std", "last_mean", "last_std", "difference"]
NUMBERS += ["p", "q", "moderated_std", "moderated_low", "moderated_high"]
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
    "q",
    "dunnett_low",
    "dunnett_high",
    "dunnett_p",
]
GAIN_COLUMNS = ["table", "row", "against", "columns", "n", "difference", "low", "high", "p", "q"]
CONDITIONAL: Verdict = "conditional on this list"
REDRAWN = "redrawn with each seed"
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
    mean. `p` is of the t test that ours equals the paper's number, `q` Benjamini-Hochberg's over the cells of its
    table; `moderated_...` are the same statistics with the variances of `moderation`, over the given cells. `overrides`
    is compact JSON and `run` the run ids, separated by spaces.

    Raises UserError if a run is not finished or its files do not fit together.
    """
    miou = read_all(suite, results)
    reported = [Sample.of([miou[run, cell.checkpoint] for run in cell.runs]) for cell in suite.cells]
    # Tables show the same trainings; each tells of the spread once.
    prior = fitted({(c.checkpoint, *c.runs): s for c, s in zip(suite.cells, reported, strict=True)}.values())
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
                **against_paper(cell, ours, suite),
                **_moderated(cell, ours, prior, suite),
                "lists": lists_of(cell, suite),
                "run": " ".join(cell.runs),
            }
        )
    return _with_q(pd.DataFrame(rows, columns=COLUMNS))


def _with_q(frame: pd.DataFrame) -> pd.DataFrame:
    """Benjamini-Hochberg's q of the p of each table."""
    if not frame.empty:
        frame["q"] = frame.groupby("table", sort=False)["p"].transform(lambda p: false_discovery(list(p)))
    return frame


def lists_of(cell: Cell, suite: Suite) -> str:
    """Whose labelled images the seeds of a cell have: what its spread is the spread of."""
    sources = {suite.runs[run].settings.split_source for run in cell.runs if run in suite.runs}
    words = {"u2pl": "the authors'", "drawn": REDRAWN}
    return ", ".join(words.get(source, f"one list of {source}") for source in sorted(sources))


def _moderated(cell: Cell, ours: Sample, prior: Prior | None, suite: Suite) -> dict[str, Any]:
    sample = Sample(ours.n, ours.mean, math.nan) if prior is None else prior.moderated(ours)
    low, high = sample.interval
    verdict = against_paper(cell, sample, suite)["verdict"]
    return {"moderated_std": sample.std, "moderated_low": low, "moderated_high": high, "moderated_verdict": verdict}


def against_paper(cell: Cell, ours: Sample, suite: Suite) -> dict[str, Any]:
    """Difference, verdict and p of a cell whose seeds gave `ours`; nothing where there is no comparable number."""
    if cell.source == "quoted" or cell.paper is None:
        return {"difference": math.nan, "covered": "", "verdict": "", "p": math.nan}
    if suite.params.synthetic:  # the paper's number is of other data
        return {"difference": math.nan, "covered": "", "verdict": "not comparable", "p": math.nan}
    low, high = ours.interval
    # The seeds of one list that is not the paper's show no spread of lists, and the paper's number has another list.
    conditional = lists_of(cell, suite).startswith("one list")
    return {
        "difference": ours.mean - cell.paper,
        "covered": ("yes" if low <= cell.paper <= high else "no") if ours.spread_known else "",
        "verdict": CONDITIONAL if conditional else verdict(ours, cell.paper, suite.params.equivalence_margin),
        "p": replace(ours, mean=ours.mean - cell.paper).p,
    }


def compare(suite: Suite, results: Path) -> pd.DataFrame:
    """Paired differences between the rows of each table, column by column: by seed, since splits and seeds are shared.

    Each trained row is compared with the table's first trained row, and with the one above it where that is another:
    what a method adds to the baseline, and what the last step added. `difference` is the row's mIoU minus that of the
    row `against`, in percent, with the sample standard deviation of the `n` differences, their t interval and the `p`
    of the paired t test (NaN where no spread is known) and Benjamini-Hochberg's `q` over those of the table. Cells that
    show the same trainings are left out. Where the first row has more seeds than all others, as in Table D, `dunnett_p`
    and the simultaneous interval compare each with it, unpaired, as many as they are (Dunnett 1955); rows that show
    its trainings are left out of that.

    Raises UserError if a run is not finished or its files do not fit together.
    """
    miou = read_all(suite, results)
    columns: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in suite.cells:
        if cell.runs:
            columns.setdefault((cell.table, cell.protocol, cell.fraction), []).append(cell)
    rows = []
    for cells in columns.values():
        dunnett = _dunnett(cells, miou)
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
                        **(dunnett.get(cell.row, {}) if other is cells[0] else {}),
                    }
                )
    return _with_q(pd.DataFrame(rows, columns=COMPARISON_COLUMNS))


def _dunnett(cells: list[Cell], miou: Miou) -> dict[str, dict[str, float]]:
    """Dunnett's p and simultaneous 1 - ALPHA interval of each row against an enlarged first row; else nothing."""
    # The test takes all values for independent; another checkpoint of the first row's trainings is not.
    cells = [cell for cell in cells if cell is cells[0] or not set(cell.runs) & set(cells[0].runs)]
    values = [[miou[run, cell.checkpoint] for run in cell.runs] for cell in cells]
    control, others = values[0], values[1:]
    if not others or len(control) <= max(map(len, others)) or sum(map(len, values)) <= len(values):
        return {}
    result = scipy.stats.dunnett(*map(np.array, others), control=np.array(control), rng=np.random.default_rng(0))
    interval = result.confidence_interval(1 - ALPHA)
    numbers = zip(interval.low, interval.high, result.pvalue, strict=True)
    names = ("dunnett_low", "dunnett_high", "dunnett_p")
    return {c.row: dict(zip(names, map(float, n), strict=True)) for c, n in zip(cells[1:], numbers, strict=True)}


def gains(suite: Suite, results: Path) -> pd.DataFrame:
    """What each row gains over the table's first trained row in the mean of its columns: `pooled` paired differences.

    The t interval takes the columns for independent and of one variance. `q` is Benjamini-Hochberg's over the table.
    Raises UserError if a run is not finished or its files do not fit together.
    """
    miou = read_all(suite, results)
    rows: dict[tuple[str, str], list[tuple[str, Sample]]] = {}
    first: dict[tuple[str, str, str], Cell] = {}
    for cell in suite.cells:
        if not cell.runs:
            continue
        base = first.setdefault((cell.table, cell.protocol, cell.fraction), cell)
        pairs = zip(cell.runs, base.runs, strict=False)
        sample = Sample.of([miou[a, cell.checkpoint] - miou[b, base.checkpoint] for a, b in pairs])
        if base is not cell:
            rows.setdefault((cell.table, cell.row), []).append((base.row, sample))
    found = []
    for (table, row), columns in rows.items():
        sample = pooled([sample for _, sample in columns])
        numbers = sample.n, sample.mean, *sample.interval, sample.p, math.nan
        found.append((table, row, columns[0][0], len(columns), *numbers))
    return _with_q(pd.DataFrame(found, columns=GAIN_COLUMNS))


def write_cells(suite: Suite, results: Path, target: Path) -> None:
    """Write `collect(suite, results)` to the CSV file `target`, atomically."""
    _write(collect(suite, results), target)


def write_comparisons(suite: Suite, results: Path, target: Path) -> None:
    """Write `compare(suite, results)` to the CSV file `target`, atomically."""
    _write(compare(suite, results), target)


def write_gains(suite: Suite, results: Path, target: Path) -> None:
    """Write `gains(suite, results)` to the CSV file `target`, atomically."""
    _write(gains(suite, results), target)


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
        raise UserError(path, f"no column {', '.join(missing)}", "those of today's version: `u2pl cells` writes it")
    try:
        cells = cells.astype({**dict.fromkeys(NUMBERS, float), "n": int, "labelled": int, "row": str, "fraction": str})
    except ValueError as error:
        raise UserError(path, error, f"numbers in the columns labelled, n, {', '.join(NUMBERS)}") from error
    if np.isinf(cells[NUMBERS]).any(axis=None):
        raise UserError(path, "an infinite number", f"finite numbers in the columns {', '.join(NUMBERS)}")
    return cells
