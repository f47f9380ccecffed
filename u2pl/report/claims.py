"""Claims that were stated before the runs that test them: which of a table's rows is better than which."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from u2pl.experiments.suite import Suite
from u2pl.files import atomic_path
from u2pl.report.cells import read_all
from u2pl.report.statistics import ALPHA, Sample

COLUMNS = ["claim", "table", "protocol", "fraction", "better", "worse", "n", "difference", "low", "high", "p"]
COLUMNS += ["p_holm", "holds"]


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p values of Holm (1979): of the k-th smallest of m, the largest (m + 1 - i) p_i of i <= k, at most 1.

    NaN stays NaN, and counts among the m.
    """
    order = sorted((p, place) for place, p in enumerate(ps) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(ps), 0.0
    for i, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - i) * p))
        adjusted[place] = largest
    return adjusted


def outcomes(suite: Suite, results: Path) -> pd.DataFrame:
    """Each claim of the suite's tables, column by column: the mean of the paired differences better - worse, in % mIoU.

    Pairs are of one seed and so of one labelled list. `low` to `high` is the t interval at 1 - ALPHA, `p` that of the
    two-sided paired t test, `p_holm` Holm's over all claims. A claim holds ("yes") if p_holm < ALPHA and the difference
    is positive; "reversed" if it is negative and as clear; else "no". Raises UserError if a run is not finished.
    """
    declared = [(name, claim) for name, table in suite.tables.items() for claim in table.claims]
    needed = {name for name, _ in declared}
    part = suite.model_copy(update={"cells": [cell for cell in suite.cells if cell.table in needed]})
    miou, rows = read_all(part, results), []
    cells = {(cell.table, cell.protocol, cell.fraction, cell.row): cell for cell in part.cells}
    for name, claim in declared:
        for column in suite.tables[name].columns:
            place = name, column.protocol, column.fraction
            better, worse = (cells[(*place, row)] for row in (claim.better, claim.worse))
            pairs = [
                miou[one, better.checkpoint] - miou[other, worse.checkpoint]
                for one, other in zip(better.runs, worse.runs, strict=False)
            ]
            sample = Sample.of(pairs)
            rows.append(
                (claim.claim, *place, claim.better, claim.worse, sample.n, sample.mean, *sample.interval, sample.p)
            )
    frame = pd.DataFrame(rows, columns=COLUMNS[:-2])
    frame["p_holm"] = holm(list(frame["p"]))
    clear, positive = frame["p_holm"] < ALPHA, frame["difference"] > 0
    frame["holds"] = [("yes" if up else "reversed") if sure else "no" for sure, up in zip(clear, positive, strict=True)]
    return frame


def write_claims(suite: Suite, results: Path, target: Path) -> None:
    """Write `outcomes(suite, results)` to the CSV file `target`, atomically."""
    with atomic_path(target) as temporary:
        outcomes(suite, results).to_csv(temporary, index=False, lineterminator="\n")
