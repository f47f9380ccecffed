"""The learning curves of finished runs."""

from pathlib import Path

import pandas as pd

from u2pl.errors import UserError
from u2pl.experiments.schema import Suite
from u2pl.report.runs import check_history


def read_curves(suite: Suite, results: Path, table: str) -> dict[tuple[int, int], list[pd.DataFrame]]:
    """history.csv of each seed, by the row and column of the table. Raises UserError if one is missing or malformed."""
    curves = {}
    rows = [row.title for row in suite.tables[table].rows]
    columns = [(column.protocol, column.fraction) for column in suite.tables[table].columns]
    for cell in suite.cells:
        if cell.table == table and cell.runs:
            place = rows.index(cell.row), columns.index((cell.protocol, cell.fraction))
            curves[place] = [read_history(results / "runs" / run / "history.csv") for run in cell.runs]
    return curves


def read_history(path: Path) -> pd.DataFrame:
    """A run's history with the columns epoch and val_miou. Raises UserError if it is missing or malformed."""
    check_history(path)
    try:
        history = pd.read_csv(path)[["epoch", "val_miou"]].astype({"epoch": int, "val_miou": float})
    except FileNotFoundError as error:
        raise UserError(path, "no file", "the history of a finished run") from error
    except (OSError, KeyError, ValueError) as error:
        raise UserError(path, error, "numbers in the columns epoch and val_miou") from error
    validated = history["val_miou"].dropna()
    if not validated.between(0, 100).all():
        odd = validated[~validated.between(0, 100)].iloc[0]
        raise UserError(path, f"val_miou = {odd}", "a percentage from 0 to 100")
    return history
