"""Dunnett's comparisons of the rows of a table with its enlarged first row, as the table's views show them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from u2pl.errors import UserError
from u2pl.experiments.schema import Table
from u2pl.report.statistics import ALPHA

KEYS = ["dunnett_low", "dunnett_high", "dunnett_p"]
PLACES = ["table", "protocol", "fraction", "row", "against", "n"]
FEW = 3  # seeds; rows of fewer have hardly a spread of their own


@dataclass(frozen=True)
class Comparison:
    """A row against the first one: simultaneous interval of the difference of means, in percent, and p."""

    n: int  # seeds of the row
    low: float
    high: float
    p: float

    @property
    def difference(self) -> float:
        """Of the means over all seeds of both rows, not paired: Dunnett's interval is symmetric about it."""
        return (self.low + self.high) / 2


Comparisons = dict[tuple[str, int], Comparison]  # by title of the row and position of the column


def read_dunnett(path: Path, table: Table, name: str) -> Comparisons:
    """Dunnett's comparisons of the table `name` from a comparisons.csv; empty if its first row is not enlarged.

    Raises UserError if the file is missing or lacks a column.
    """
    try:
        frame = pd.read_csv(path, keep_default_na=False, na_values={key: [""] for key in KEYS}, dtype={"row": str})
    except FileNotFoundError as error:
        raise UserError(path, "no file", "the differences between rows: `u2pl table`") from error
    except (OSError, ValueError) as error:
        raise UserError(path, error, "a CSV file of differences between rows") from error
    if missing := [column for column in PLACES + KEYS if column not in frame]:
        raise UserError(path, f"no column {', '.join(missing)}", "those of today's version: `u2pl table` writes it")
    known = frame[(frame["table"] == name) & frame["dunnett_p"].notna()]
    places = {(column.protocol, column.fraction): position for position, column in enumerate(table.columns)}
    return {
        (line["row"], places[line["protocol"], str(line["fraction"])]): Comparison(
            int(line["n"]), *(float(line[key]) for key in KEYS)
        )
        for line in known.to_dict("records")
        if (line["protocol"], str(line["fraction"])) in places
    }


def notes(found: Comparisons, first: str, n: int) -> Iterator[str]:
    """Sentences of the caption: the test, what it can find, and whether n is too small. first: title, of `n` seeds."""
    if not found:
        return
    family = max(sum(place == column for _, place in found) for _, column in found)
    width = max((comparison.high - comparison.low) / 2 for comparison in found.values())
    yield (
        f"Rows are compared with {first} ({n} seeds) by Dunnett's test, {family} at once: the simultaneous "
        f"{100 * (1 - ALPHA):g} % intervals reach up to {width:.2f} mIoU to either side."
    )
    if (least := min(comparison.n for comparison in found.values())) < FEW:
        seeds = "1 seed" if least == 1 else f"{least} seeds"
        yield f"n is too small: rows have as few as {seeds}, and borrow their spread from the other rows."


def sheet(found: Comparisons, titles: list[str], headers: list[str]) -> list[list[str]]:
    """Heading and lines: for each column `difference (low to high)` and p. Rows without any comparison have no line."""
    lines = [["Against the first row", *(f"{header}{part}" for header in headers for part in ("", " p"))]]
    for title in titles:
        line = [title]
        for position in range(len(headers)):
            line += _shown(found.get((title, position)))
        if any(line[1:]):
            lines.append(line)
    return lines


def _shown(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return ["", ""]
    interval = f"{comparison.difference:+.2f} ({comparison.low:+.2f} to {comparison.high:+.2f})"
    return [interval, "< 0.001" if comparison.p < 0.001 else f"{comparison.p:.3f}"]


def number_columns(comparison: Comparison | None, header: str) -> dict[str, float]:
    """The columns of one cell in the wide CSV table."""
    numbers = [math.nan] * 3 if comparison is None else [comparison.low, comparison.high, comparison.p]
    return {f"{header} {key.replace('_', ' ')}": number for key, number in zip(KEYS, numbers, strict=True)}
