"""From few labelled images to many: what is gained by a teacher, and how good a teacher has to be."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from u2pl.experiments.schema import Table
from u2pl.report.canvas import BLACK, DASHES, MARKERS, PALETTE, drawn, plain

Curves = Mapping[tuple[int, int], Sequence[pd.DataFrame]]  # as `draw_curves` has them


def draw_transition(
    stem: Path, table: Table, labelled: Sequence[int], curves: Curves, against: Mapping[str, str]
) -> None:
    """Left: mIoU of the last epoch by the number of labelled images, mean and standard deviation of the seeds.
    Right, a point per run: gain over the row that `against` names, with the same seed and so the same list, by the
    mIoU of the pseudo-labels in the first epoch that has any.

    labelled: images of each column. Runs whose pseudo-labels were not measured have no point.
    """
    titles = [row.title for row in table.rows]
    with drawn(stem, 3.6) as figure:
        left, right = figure.subplots(1, 2)
        columns = range(len(labelled))
        for row, title in enumerate(titles):
            if any((row, column) in curves for column in columns):
                _levels(left, labelled, [_last(curves.get((row, column), ())) for column in columns], row, title)
        left.set_xscale("log")
        left.set_xticks(labelled, [str(number) for number in labelled])
        left.xaxis.set_minor_locator(NullLocator())
        left.set(xlabel="labelled images", ylabel="mIoU of the last epoch (%)")
        for title, baseline in against.items():
            row, other = titles.index(title), titles.index(baseline)
            points = [
                (_first_quality(own), gain)
                for column in columns
                for own, gain in _gains(curves.get((row, column), ()), curves.get((other, column), ()))
            ]
            known = np.array([point for point in points if not np.isnan(point).any()]).reshape(-1, 2)
            right.plot(*known.T, _marker(row), color=_colour(row), markersize=4, alpha=0.8, ls="none")
        right.axhline(0, color=BLACK, lw=0.6)
        right.set(xlabel="mIoU of pseudo-labels after the warm-up (%)", ylabel="gain over SupOnly (mIoU, points)")
        for panel in (left, right):
            panel.grid()
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=5)


def _levels(panel: Axes, labelled: Sequence[int], values: Sequence[Sequence[float]], row: int, title: str) -> None:
    mean = np.array([np.mean(seeds) if len(seeds) else np.nan for seeds in values])
    spread = np.array([np.std(seeds, ddof=1) if len(seeds) > 1 else np.nan for seeds in values])
    style = DASHES[row // len(PALETTE) % len(DASHES)]
    panel.errorbar(
        labelled, mean, spread, fmt=_marker(row) + style, color=_colour(row), lw=1.1, markersize=3, capsize=2,
        elinewidth=0.6, label=plain(title),
    )  # fmt: skip


def _gains(own: Sequence[pd.DataFrame], other: Sequence[pd.DataFrame]) -> list[tuple[pd.DataFrame, float]]:
    """Each seed's history with its gain; both begin with the scale's seeds in the same order."""
    pairs = zip(own, _last(own), _last(other), strict=False)
    return [(history, a - b) for history, a, b in pairs]


def _last(histories: Sequence[pd.DataFrame]) -> list[float]:
    return [float(history["val_miou"].dropna().iloc[-1]) for history in histories]


def _first_quality(history: pd.DataFrame) -> float:
    known = history["pseudo_miou"].dropna() if "pseudo_miou" in history else pd.Series(dtype=float)
    return float("nan") if known.empty else float(known.iloc[0])


def _colour(row: int) -> str:
    return PALETTE[row % len(PALETTE)]


def _marker(row: int) -> str:
    return MARKERS[row % len(MARKERS)]
