"""The learning curves of finished runs: the only reader of history.csv."""

from pathlib import Path

import pandas as pd

from u2pl.errors import UserError
from u2pl.experiments.read import validate
from u2pl.experiments.records import HistoryRow, RunRecord, read
from u2pl.experiments.suite import Suite
from u2pl.files import sha256
from u2pl.folders import Results, Run

# What explains a curve, in the order in which it is shown: columns of history.csv that not every run has.
DIAGNOSTICS = {
    "pseudo_miou": "pseudo-labels: mIoU (%)",
    "pseudo_accuracy": "pseudo-labels: correct (%)",
    "reliable_share": "reliable: share (%)",
    "reliable_accuracy": "reliable: correct (%)",
    "unlabelled_key_purity": "negatives: pure (%)",
    "new_keys": "new keys per class",
    "contrastive": "$L_c$",
}


def read_curves(suite: Suite, results: Path, table: str) -> dict[tuple[int, int], list[pd.DataFrame]]:
    """The history of each seed, by the row and column of the table. Raises UserError as `read_history` does."""
    curves = {}
    rows = [row.title for row in suite.tables[table].rows]
    columns = [(column.protocol, column.fraction) for column in suite.tables[table].columns]
    for cell in suite.cells:
        if cell.table == table and cell.runs:
            place = rows.index(cell.row), columns.index((cell.protocol, cell.fraction))
            curves[place] = [read_history(Results(results).run(run)) for run in cell.runs]
    return curves


def read_history(run: Run) -> pd.DataFrame:
    """A run's history, a row per epoch with the columns of `HistoryRow`; NaN where nothing was measured.

    Raises UserError if it is missing, malformed, or not the one that run.json beside it records.
    """
    path = run.history
    try:
        history = pd.read_csv(path)
    except FileNotFoundError as error:
        raise UserError(path, "no file", "the history of a finished run") from error
    except (OSError, ValueError) as error:
        raise UserError(path, error, "the history of a run") from error
    if run.record.is_file() and (found := sha256(path)) != (expected := read(RunRecord, run.record).files.history):
        raise UserError(path, f"sha256 {found}", f"{expected} of {run.record}")
    known = history.astype(object).where(history.notna(), None)
    for number, row in enumerate(known.to_dict("records"), start=2):  # the header is line 1
        validate(HistoryRow, {str(name): value for name, value in row.items()}, path, (f"line {number}",))
    if history.empty:
        raise UserError(path, "no epoch", "the history of a finished run")
    return history.astype({"val_miou": float}) if "val_miou" in history else history.assign(val_miou=float("nan"))
