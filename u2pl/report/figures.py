"""The figures, as PDF and PNG. Equal numbers give equal bytes: no dates, no software versions inside."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from u2pl.data.images import UInt8
from u2pl.errors import UserError
from u2pl.experiments.schema import ClassLabel, Table
from u2pl.experiments.suite import Suite
from u2pl.report.canvas import BLUE, DASHES, GREEN, MARKERS, ORANGE, PALETTE, WIDTH, drawn, plain
from u2pl.report.cells import read_cells
from u2pl.report.history import DIAGNOSTICS, read_curves
from u2pl.report.transition import draw_transition


def colourise(labels: NDArray[Any], classes: Sequence[ClassLabel]) -> UInt8:
    """Labels (H, W) in the classes' own colours, (H, W, 3); what is no class becomes white."""
    palette = np.full((256, 3), 255, dtype=np.uint8)
    palette[: len(classes)] = [label.colour for label in classes]
    return palette[labels]


def draw_classes(
    stem: Path, classes: Sequence[ClassLabel], iou: Sequence[float], reliable: Sequence[int], unreliable: Sequence[int]
) -> None:
    """Fig. 1: IoU (percent, nan: class absent) above the numbers of reliable and unreliable pixels; best first."""
    order = sorted(range(len(classes)), key=lambda c: -math.inf if math.isnan(iou[c]) else iou[c], reverse=True)
    x = np.arange(len(order))
    with drawn(stem, 3.6) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.2])
        top.bar(x, [iou[c] for c in order], color=BLUE, width=0.8)
        top.set(ylabel="IoU (%)", ylim=(0, 100))
        for values, colour, offset, name in (
            (reliable, GREEN, -0.2, "reliable"),
            (unreliable, ORANGE, 0.2, "unreliable"),
        ):
            bottom.bar(x + offset, [values[c] for c in order], color=colour, width=0.4, label=name)
        # Reliable pixels are up to thousands of times as many; a class may have none.
        bottom.set_yscale("symlog", linthresh=1)
        bottom.set(ylabel="pixels", ylim=(0, None))
        bottom.set_xticks(x, [classes[c].name for c in order], rotation=45, ha="right", rotation_mode="anchor")
        bottom.legend(loc="upper right", ncols=2, bbox_to_anchor=(1, 1.2))
        for axes in (top, bottom):
            axes.grid(axis="y")
            axes.tick_params(axis="x", length=0)


def draw_entropy(
    stem: Path, classes: Sequence[ClassLabel], probs: NDArray[np.float32], alpha: float, ignore_label: int
) -> None:
    """Fig. 2, of the probabilities (C, H, W) of one image, whose share `alpha` of pixels is unreliable (Eq. 6)."""
    import torch  # here: the figures of numbers alone need not wait for it

    from u2pl.components.pseudo_labels import drop_unreliable, entropy, entropy_threshold

    batch = torch.from_numpy(probs)[None]
    entropies = entropy(batch)
    labels = drop_unreliable(batch.argmax(1), entropies, entropy_threshold(entropies, alpha), ignore_label)[0].numpy()
    pixels = two_pixels(entropies[0].numpy(), labels, ignore_label)
    with drawn(stem, 5.2) as figure:
        panels = figure.subplots(2, 2, height_ratios=[1, 0.9])
        image = panels[0, 0].imshow(entropies[0].numpy(), cmap="viridis", vmin=0, interpolation="nearest")
        figure.colorbar(image, ax=panels[0, 0], shrink=0.8, label="entropy (nats)")
        panels[0, 1].imshow(colourise(labels, classes), interpolation="nearest")
        panels[0, 0].set_title("(a) entropy")
        panels[0, 1].set_title("(b) pseudo-labels of the reliable pixels")
        for panel in panels[0]:
            panel.set_axis_off()
            for (row, column), colour in zip(pixels, ("yellow", "white"), strict=True):
                for width, shade in ((4, "black"), (2, colour)):  # outlined, to be seen on any ground
                    panel.plot(column, row, "x", color=shade, ms=9, mew=width, clip_on=False)
        for panel, (row, column), colour, title in zip(
            panels[1],
            pixels,
            (GREEN, ORANGE),
            ("(c) a reliable pixel (yellow cross)", "(d) an unreliable pixel (white cross)"),
            strict=True,
        ):
            panel.bar(np.arange(len(classes)), probs[:, row, column], color=colour)
            panel.set_xticks(np.arange(len(classes)), [label.name for label in classes], rotation=90, fontsize=6.5)
            panel.set(ylim=(0, 1), title=title, ylabel="probability")
            panel.grid(axis="y")


def two_pixels(
    entropies: NDArray[np.floating], labels: NDArray[np.integer], ignore_label: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(row, column) of the least and of the most uncertain pixel; the first is no background where that is possible.

    labels: pseudo-labels (H, W), `ignore_label` where they are unreliable.
    """
    chosen = (labels != ignore_label) & (labels != 0)
    if not chosen.any():
        chosen = labels != ignore_label
    least = np.where(chosen, entropies, np.inf).argmin() if chosen.any() else entropies.argmin()
    pixels = [np.unravel_index(int(flat), entropies.shape) for flat in (least, entropies.argmax())]
    (a, b), (c, d) = pixels
    return (int(a), int(b)), (int(c), int(d))


def draw_predictions(
    stem: Path,
    classes: Sequence[ClassLabel],
    images: Sequence[UInt8],
    masks: Sequence[NDArray[np.integer]],
    labels: Mapping[str, Sequence[NDArray[np.integer]]],
) -> None:
    """Fig. 4: one row an image (H, W, 3): input, ground truth (H, W), and the labels of each named run."""
    columns: dict[str, Sequence[UInt8]] = {"input": images}
    columns |= {name: [colourise(mask, classes) for mask in column] for name, column in [("ground truth", masks)]}
    columns |= {name: [colourise(mask, classes) for mask in column] for name, column in labels.items()}
    shown = np.unique(np.concatenate([mask.ravel() for column in [masks, *labels.values()] for mask in column]))
    width = WIDTH / len(columns)
    heights = [width * image.shape[0] / image.shape[1] for image in images]
    known = [c for c in shown.tolist() if c < len(classes)]
    with drawn(stem, sum(heights) + 0.25 + 0.17 * math.ceil(len(known) / 7)) as figure:
        grid = figure.subplots(len(images), len(columns), squeeze=False, height_ratios=heights)
        for column, (name, pictures) in enumerate(columns.items()):
            for row, picture in enumerate(pictures):
                grid[row, column].imshow(picture, interpolation="nearest")
                grid[row, column].set(xticks=[], yticks=[])
                grid[row, column].spines[:].set_visible(False)
            grid[0, column].set_title(name)
        patches = [
            Patch(
                facecolor="#{:02x}{:02x}{:02x}".format(*classes[c].colour),
                edgecolor="#808080",
                lw=0.4,
                label=classes[c].name,
            )
            for c in known
        ]
        figure.legend(handles=patches, loc="outside lower center", ncols=7, fontsize=6.5, handlelength=1.2)


def draw_numbers(suite: Suite, name: str, stem: Path, results: Path, cells_csv: Path) -> None:
    """Draw a figure of a table: its learning curves, what explains them, or its cells beside the paper's."""
    params = suite.figures[name]
    assert params.table is not None
    table = suite.tables[params.table]
    if params.kind == "curves":
        draw_curves(stem, table, read_curves(suite, results, params.table))
    elif params.kind == "diagnostics":
        draw_diagnostics(stem, table, read_curves(suite, results, params.table))
    elif params.kind == "transition":
        labelled = [suite.protocols[column.protocol].fractions[column.fraction] for column in table.columns]
        draw_transition(stem, table, labelled, read_curves(suite, results, params.table), params.against)
    else:
        draw_comparison(stem, cells_csv, params.table, table)


def draw_curves(stem: Path, table: Table, curves: Mapping[tuple[int, int], Sequence[pd.DataFrame]]) -> None:
    """Validation mIoU by epoch: a panel a column, a line a row; the band is the sample standard deviation.

    On Cityscapes these are centre crops, unless `selected_by` is `reported`.
    curves: by index of row and column, one history.csv a seed (columns epoch and val_miou).
    """
    columns = len(table.columns)
    per_line = min(columns, 4)
    lines = math.ceil(columns / per_line)
    with drawn(stem, 0.4 + 2.1 * lines) as figure:
        panels = figure.subplots(lines, per_line, squeeze=False, sharey=True).flatten()
        for index, panel in enumerate(panels[:columns]):
            rows = sorted(row for row, c in curves if c == index)
            for row in rows:
                _seeds(panel, curves[row, index], "val_miou", rows.index(row), table.rows[row].title)
            panel.set(title=_heading(table, index), xlabel="epoch")
            panel.set_xlim(left=0)
            panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            panel.grid()
        for panel in panels[columns:]:
            panel.set_axis_off()
        for panel in panels[::per_line]:
            panel.set_ylabel("mIoU (%)")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4)


def _seeds(panel: Axes, histories: Sequence[pd.DataFrame], column: str, place: int, title: str) -> None:
    """The mean over the seeds of a column by epoch, and their sample standard deviation as a band."""
    seeds = pd.concat([h.set_index("epoch")[column].dropna() for h in histories], axis=1)
    colour = PALETTE[place % len(PALETTE)]
    mean = seeds.mean(axis=1).sort_index()
    panel.plot(
        mean.index, mean, DASHES[place // len(PALETTE) % len(DASHES)], color=colour, lw=1.1, label=plain(title),
        marker=MARKERS[place % len(MARKERS)], markersize=3, markevery=max(1, len(mean) // 8),
    )  # fmt: skip
    if seeds.shape[1] > 1:
        spread = seeds.std(axis=1).reindex(mean.index)
        panel.fill_between(mean.index, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0)


def draw_diagnostics(stem: Path, table: Table, curves: Mapping[tuple[int, int], Sequence[pd.DataFrame]]) -> None:
    """What explains the curves, by epoch: a line of panels per quantity, a panel per column, a line per row.

    Left out are quantities that no run has, and rows without any. curves: as in `draw_curves`.
    """

    def having(name: str) -> list[tuple[int, int]]:
        return [key for key, seeds in sorted(curves.items()) if all(name in h and h[name].notna().any() for h in seeds)]

    names = [name for name in DIAGNOSTICS if having(name)]
    rows = sorted({row for name in names for row, _ in having(name)})
    columns = len(table.columns)
    with drawn(stem, 0.6 + 1.25 * max(1, len(names)), min(WIDTH, 1.6 + 1.8 * columns)) as figure:
        if not names:
            figure.text(0.5, 0.5, "No run of this table has measured pseudo-labels.", ha="center")
            return
        panels = figure.subplots(len(names), columns, squeeze=False, sharey="row", sharex=True)
        for name, line in zip(names, panels, strict=True):
            for row, column in having(name):
                _seeds(line[column], curves[row, column], name, rows.index(row), table.rows[row].title)
            line[0].set_ylabel(DIAGNOSTICS[name].replace(": ", ":\n"), fontsize=7)
            for panel in line:
                panel.grid()
        for index, panel in enumerate(panels[0]):
            panel.set_title(_heading(table, index))
        for panel in panels[-1]:
            panel.set_xlabel("epoch")
            panel.set_xlim(left=0)
            panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        shown = {name: handle for p in panels.flat for handle, name in zip(*p.get_legend_handles_labels(), strict=True)}
        ordered = [plain(table.rows[row].title) for row in rows]
        figure.legend([shown[name] for name in ordered], ordered, loc="outside lower center", ncols=3)


def draw_comparison(stem: Path, cells_csv: Path, name: str, table: Table) -> None:
    """The paper's numbers and ours with their intervals, a panel a column."""
    cells = read_cells(cells_csv)
    cells = cells[cells["table"] == name].set_index(["row", "protocol", "fraction"])
    columns = len(table.columns)
    y = np.arange(len(table.rows))[::-1]
    with drawn(stem, 0.7 + 0.19 * len(y), min(WIDTH, 2.6 + 1.6 * columns)) as figure:
        panels = figure.subplots(1, columns, squeeze=False, sharey=True, sharex=True)[0]
        for index, (panel, column) in enumerate(zip(panels, table.columns, strict=True)):
            try:
                own = cells.loc[[(row.title, column.protocol, column.fraction) for row in table.rows]]
            except KeyError as error:
                raise UserError(cells_csv, f"no cell {error.args[0]}", "every cell of the table") from error
            panel.plot(own["paper"], y, "D", color=ORANGE, markersize=4, markerfacecolor="none", label="paper")
            panel.errorbar(
                own["mean"], y, xerr=_error(own), fmt="o", color=BLUE, markersize=3.5, capsize=2, lw=1, label="ours"
            )
            panel.set(title=_heading(table, index), xlabel="mIoU (%)")
            panel.set_yticks(y, [plain(row.title) for row in table.rows])
            panel.tick_params(axis="y", length=0)
            panel.grid()
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=2)


def _error(cells: pd.DataFrame) -> NDArray[np.float64]:
    """Lengths below and above the mean, (2, rows); nan is drawn as nothing."""
    low, mean, high = (cells[key].to_numpy(float) for key in ("low", "mean", "high"))
    return np.stack([mean - low, high - mean])


def _heading(table: Table, index: int) -> str:
    column = table.columns[index]
    many = len({c.protocol for c in table.columns}) > 1
    return f"{column.protocol} " * many + column.fraction
