"""The numbers that DVC compares and draws: the measured cells, and the learning curves of their runs."""

from pathlib import Path
from typing import Any

import pandas as pd

from u2pl.experiments.suite import Suite
from u2pl.files import atomic_path, write_json
from u2pl.folders import Results
from u2pl.report.cells import read_cells
from u2pl.report.history import read_history


def write_metrics(cells: Path, target: Path) -> None:
    """Write mean IoU in percent of the trained cells of `cells.csv` as JSON: table -> row -> column -> value."""
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    frame = read_cells(cells)
    for cell in frame[frame.source != "quoted"].itertuples():
        column = f"{cell.protocol} {cell.fraction}"
        metrics.setdefault(str(cell.table), {}).setdefault(str(cell.row), {})[column] = float(str(cell.mean))
    write_json(target, metrics)


def write_curves(suite: Suite, results: Path, target: Path) -> None:
    """Write the validated epochs of every run's history.csv as one CSV: run, protocol, labelled, method, epoch, ...

    Raises UserError if a history is missing or is not one.
    """
    curves = []
    for spec in suite.runs.values():
        history = read_history(Results(results).run(spec.id))[["epoch", "loss", "val_miou"]].dropna()
        described: dict[str, Any] = {
            "run": spec.id,
            "protocol": spec.protocol,
            "labelled": spec.labelled,
            "method": spec.method,
        }
        curves.append(history.assign(**described)[[*described, "epoch", "loss", "val_miou"]])
    with atomic_path(target) as temporary:
        pd.concat(curves).to_csv(temporary, index=False, lineterminator="\n")
