"""The first steps of methods against those of the baseline: how far each loss part is off, on any platform."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from u2pl.errors import UserError
from u2pl.files import atomic_path
from u2pl.report.baseline import RENEW, Outcome, annotate

KEY = ["method", "reading", "step", "part"]
COLUMNS = [*KEY, "value"]
# Rounding moved no part by more than 4e-6 (1 to 4 threads, without oneDNN, without AVX, weights off by 1e-6), and the
# seeded faults of tests/engine/test_first_steps.py one by 3e-2 at least.
TOLERANCE = 5e-4
Row = tuple[str, str, int, str, float]


@dataclass(frozen=True)
class StepOutcome(Outcome):
    """One loss part of one step; a value is NaN where only one side has the part."""

    step: int

    def __str__(self) -> str:
        found, expected = ("no number" if math.isnan(value) else f"{value:.6g}" for value in (self.now, self.before))
        return f"{self.run}, {self.metric}: found {found}, expected {expected} to within {self.tolerance:g}"


def write_first_steps(rows: Iterable[Row], target: Path) -> None:
    """Write (method, reading, step, part, value) rows as CSV, atomically; raises UserError for a value not finite."""
    table = pd.DataFrame(rows, columns=COLUMNS)
    if not np.isfinite(table["value"]).all():
        first = table[~np.isfinite(table["value"])].iloc[0]
        raise UserError(" ".join(str(first[name]) for name in KEY), first["value"], "a finite loss: no baseline else")
    with atomic_path(target) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def read_first_steps(path: Path) -> pd.DataFrame:
    """Read what `write_first_steps` wrote; raises UserError if it is missing or something else."""
    expected = "first steps, which `u2pl baseline` writes"
    try:
        table = pd.read_csv(path, keep_default_na=False)
        table = table.astype({"step": int, "value": float})
    except FileNotFoundError as error:
        raise UserError(path, "no file", expected) from error
    except (OSError, ValueError, KeyError) as error:
        raise UserError(path, error, expected) from error
    if list(table.columns) != COLUMNS or table.empty or table.duplicated(KEY).any():
        raise UserError(path, f"columns {', '.join(table.columns)}", f"{', '.join(COLUMNS)}, and one row per part")
    if not np.isfinite(table["value"]).all():
        raise UserError(path, "a number that is not finite", expected)
    return table


def compare_first_steps(rows: Iterable[Row], path: Path) -> list[StepOutcome]:
    """Compare today's rows with those of the file `path`, in the file's order; new parts come last.

    Raises UserError if the file holds no first steps.
    """
    table = read_first_steps(path)
    then = dict(zip(table[KEY].itertuples(index=False, name=None), table["value"], strict=True))
    now = {(method, reading, step, part): value for method, reading, step, part, value in rows}
    outcomes = []
    for number, key in enumerate(dict.fromkeys([*then, *now])):
        method, reading, step, part = key
        where, metric = f"{method} ({reading})", f"step {step}, {part}"
        line = number + 2 if key in then else 1  # the header is line 1
        values = (then.get(key, math.nan), now.get(key, math.nan))
        outcomes.append(StepOutcome(where, metric, *values, TOLERANCE, line, [], step))
    return outcomes


def render_first_steps(outcomes: Sequence[StepOutcome], path: Path) -> None:
    """Print a line for each method whose first steps moved, and the count; on GitHub with an annotation for each.

    The line shows the part that moved most in the earliest step that has one: a sum moves with its terms, and later
    steps with earlier ones.
    """
    moved = [outcome for outcome in outcomes if outcome.moved]
    for run in dict.fromkeys(outcome.run for outcome in moved):
        own = [outcome for outcome in moved if outcome.run == run]
        worst = min(own, key=_prominence)
        text = str(worst) + (f" (and {len(own) - 1} more)" if len(own) > 1 else "")
        print(text)
        annotate(path, worst.line, "a first step moved", text)
    print(f"{len(outcomes)} losses of first steps, compared to within {TOLERANCE:g}: {len(moved)} moved from {path}")
    if moved:
        print(RENEW)


def _prominence(outcome: StepOutcome) -> tuple[int, bool, float]:
    change = abs(outcome.now - outcome.before)
    return outcome.step, outcome.metric.endswith(", loss"), -math.inf if math.isnan(change) else -change
