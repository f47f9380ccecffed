"""Figures: what is drawn, read back from matplotlib's objects; the bytes; and what params may ask for."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image

from u2pl.cli.main import main
from u2pl.errors import UserError
from u2pl.experiments import figure_cells, load_suite
from u2pl.experiments.schema import ClassLabel, Table
from u2pl.experiments.suite import Suite
from u2pl.folders import Run
from u2pl.report import figures
from u2pl.report.cells import write_cells
from u2pl.report.history import read_curves, read_history
from u2pl.report.transition import draw_transition

ROOT = Path(__file__).parents[2]
CLASSES = [
    ClassLabel(name=name, colour=colour)
    for name, colour in [("background", (0, 0, 0)), ("bird", (128, 128, 0)), ("boat", (0, 0, 128))]
]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn; nothing is rendered."""
    drawn: list[Figure] = []

    def savefig(self: Figure, path: Path, **_: object) -> None:
        if self not in drawn:
            drawn.append(self)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return drawn


def random_probs(shape: tuple[int, int] = (12, 16)) -> np.ndarray[Any, Any]:
    logits = np.random.default_rng(0).normal(size=(3, *shape))
    return (np.exp(2 * logits) / np.exp(2 * logits).sum(0)).astype(np.float32)


# --- what is drawn


def test_masks_have_the_classes_own_colours() -> None:
    labels = np.array([[0, 1], [2, 255]])
    expected = [[(0, 0, 0), (128, 128, 0)], [(0, 0, 128), (255, 255, 255)]]
    assert figures.colourise(labels, CLASSES).tolist() == [[list(colour) for colour in row] for row in expected]


def test_classes_stand_by_iou_with_their_own_pixels(tmp_path: Path, seen: list[Figure]) -> None:
    figures.draw_classes(tmp_path / "f", CLASSES, [50.0, float("nan"), 75.0], [10, 20, 30], [1, 0, 3])
    top, bottom = seen[0].axes
    heights = [bar.get_height() for bar in top.patches]
    assert heights[:2] == [75.0, 50.0] and np.isnan(heights[2])
    assert [bar.get_height() for bar in bottom.patches] == [30, 10, 20, 3, 1, 0]
    assert [label.get_text() for label in bottom.get_xticklabels()] == ["boat", "background", "bird"]


def test_unreliable_pixels_have_no_pseudo_label(tmp_path: Path, seen: list[Figure]) -> None:
    probs = random_probs()
    figures.draw_entropy(tmp_path / "f", CLASSES, probs, 0.25, 255)
    entropies = -(probs * np.log(probs)).sum(0)
    unreliable = entropies >= np.percentile(entropies, 75)
    maps = [np.asarray(image.get_array()) for axes in seen[0].axes for image in axes.get_images()]
    np.testing.assert_allclose(maps[0], entropies, rtol=1e-4, atol=1e-6)
    assert ((maps[1] == 255).all(2) == unreliable).all()
    np.testing.assert_array_equal(maps[1][~unreliable], figures.colourise(probs.argmax(0), CLASSES)[~unreliable])
    bars = [[bar.get_height() for bar in axes.patches] for axes in seen[0].axes if len(axes.patches) == 3]
    most = np.unravel_index(entropies.argmax(), entropies.shape)
    np.testing.assert_allclose(bars[1], probs[(slice(None), *most)])


def test_the_reliable_pixel_is_no_background_where_there_is_other() -> None:
    entropies = np.array([[0.1, 0.2, 0.9]])
    assert figures.two_pixels(entropies, np.array([[0, 1, 255]]), 255) == ((0, 1), (0, 2))
    assert figures.two_pixels(entropies, np.array([[0, 0, 255]]), 255) == ((0, 0), (0, 2))
    assert figures.two_pixels(entropies, np.array([[255, 255, 255]]), 255) == ((0, 0), (0, 2))


def test_a_curve_is_the_mean_over_seeds_and_its_band_their_deviation(
    tmp_path: Path, seen: list[Figure], table: Table
) -> None:
    seeds = [[10.0, 30.0], [14.0, 31.0], [12.0, 41.0]]
    histories = [pd.DataFrame({"epoch": [1, 2, 3], "val_miou": [a, np.nan, b]}) for a, b in seeds]
    one = [pd.DataFrame({"epoch": [3], "val_miou": [50.0]})]
    figures.draw_curves(tmp_path / "f", table, {(2, 0): histories, (0, 0): one, (0, 1): one, (2, 1): one})
    lines = {line.get_label(): line for line in seen[0].axes[0].get_lines()}
    assert set(lines) == {"SupOnly", "None"}
    np.testing.assert_allclose(lines["None"].get_xydata(), [(1, 12), (3, 34)])
    (band,) = seen[0].axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    spread = np.std(seeds, axis=0, ddof=1)
    np.testing.assert_allclose([heights.min(), heights.max()], [12 - spread[0], 34 + spread[1]])


def test_diagnostics_have_a_panel_per_quantity_and_column(tmp_path: Path, seen: list[Figure], table: Table) -> None:
    epochs = {"epoch": [1, 2, 3], "val_miou": [1.0, 2.0, 3.0]}
    plain = pd.DataFrame(epochs)
    one = pd.DataFrame(epochs | {"pseudo_miou": [np.nan, 10.0, 30.0], "new_keys": [np.nan] * 3})
    other = one.assign(pseudo_miou=[np.nan, 20.0, 50.0], contrastive=[np.nan, 2.0, 1.0])
    curves = {(0, 0): [plain], (1, 0): [one, other], (2, 0): [other], (2, 1): [other], (1, 1): [other, plain]}
    figures.draw_diagnostics(tmp_path / "f", table, curves)
    columns = len(table.columns)
    axes = np.array(seen[0].axes).reshape(-1, columns)
    assert [line[0].get_ylabel() for line in axes] == ["pseudo-labels:\nmIoU (%)", "$L_c$"]
    first, second = axes[0, 0].get_lines()
    np.testing.assert_allclose(first.get_xydata(), [(2, 15), (3, 40)])
    np.testing.assert_allclose(second.get_xydata(), [(2, 20), (3, 50)])
    assert len(axes[0, 0].collections) == 1 and [len(panel.get_lines()) for panel in axes[0, 1:]] == [1] + [0] * (
        columns - 2
    )
    assert [len(panel.get_lines()) for panel in axes[1, :2]] == [1, 1]
    (legend,) = seen[0].legends
    assert [text.get_text() for text in legend.get_texts()] == [table.rows[i].title for i in (1, 2)]
    figures.draw_diagnostics(tmp_path / "empty", table, {(0, 0): [plain]})
    assert not seen[1].axes and "No run" in seen[1].texts[0].get_text()


def test_the_comparison_shows_both_numbers_and_the_interval(
    tmp_path: Path, seen: list[Figure], suite: Suite, results: Path, table: Table
) -> None:
    path = results / "cells.csv"
    write_cells(suite, results, path)
    cells = pd.read_csv(path, keep_default_na=False)
    cells["low"], cells["high"] = 1.0, 99.0
    cells.to_csv(path, index=False)
    figures.draw_comparison(tmp_path / "f", path, "table2", table)
    panel = seen[0].axes[0]
    paper = panel.get_lines()[0].get_xydata()
    assert paper.tolist() == [[71.55, 2], [76.44, 1], [79.01, 0]]
    (bars,) = panel.containers
    np.testing.assert_allclose(bars.lines[0].get_xydata()[[0, 2]], [[51, 2], [np.mean([55.125, 58.375]), 0]])
    np.testing.assert_allclose(bars.lines[2][0].get_segments()[0][:, 0], (1.0, 99.0))


# --- files


def draw_everything(folder: Path, table: Table) -> None:
    probs, mask = random_probs(), np.zeros((12, 16), dtype=np.uint8)
    curve = [pd.DataFrame({"epoch": [1, 2], "val_miou": [1.0, 2.0]})] * 2
    figures.draw_classes(folder / "classes", CLASSES, [1.0, 2.0, 3.0], [1, 2, 3], [0, 0, 1])
    figures.draw_entropy(folder / "entropy", CLASSES, probs, 0.2, 255)
    labels = {"SupOnly": [probs.argmax(0)]}
    figures.draw_predictions(folder / "predictions", CLASSES, [figures.colourise(mask, CLASSES)], [mask], labels)
    figures.draw_curves(folder / "curves", table, {(0, 0): curve, (0, 1): curve})
    known = [seed.assign(pseudo_miou=[1.0, 2.0]) for seed in curve]
    figures.draw_diagnostics(folder / "diagnostics", table, {(0, 0): known, (0, 1): known})


def test_the_transition_shows_levels_and_each_runs_gain(tmp_path: Path, seen: list[Figure], table: Table) -> None:
    """Two seeds of a baseline and of a method, whose pseudo-labels are measured from epoch 2 on."""

    def history(last: float, quality: float | None) -> pd.DataFrame:
        own = {"epoch": [1, 2, 3], "val_miou": [1.0, np.nan, last]}
        return pd.DataFrame(own | ({"pseudo_miou": [np.nan, quality, 99.0]} if quality else {}))

    curves = {
        (0, 0): [history(50, None), history(54, None)],
        (0, 1): [history(70, None), history(71, None)],
        (2, 0): [history(47, 40.0), history(52, 45.0)],
        (2, 1): [history(75, 80.0), history(78, 85.0)],
    }
    draw_transition(tmp_path / "t", table, [8, 16], curves, {"None": "SupOnly"})
    (figure,) = seen
    left, right = figure.axes
    means = {c.get_label(): c.lines[0].get_ydata().tolist() for c in left.containers}
    assert means == {"SupOnly": [52.0, 70.5], "None": [49.5, 76.5]}
    assert left.get_xscale() == "log" and [t.get_text() for t in left.get_xticklabels()] == ["8", "16"]
    points, zero = right.get_lines()
    assert points.get_xydata().tolist() == [[40, -3], [45, -2], [80, 5], [85, 7]]
    assert zero.get_ydata() == [0, 0]


def test_equal_numbers_give_equal_bytes_without_dates(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_everything(tmp_path / "a", table)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")  # another day
    draw_everything(tmp_path / "b", table)
    files = sorted((tmp_path / "a").iterdir())
    assert len(files) == 10
    for path in files:
        content = path.read_bytes()
        assert content == (tmp_path / "b" / path.name).read_bytes(), path.name
        assert b"CreationDate" not in content and b"matplotlib" not in content.lower(), path.name
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert set(image.info) <= {"dpi"}


def test_missing_and_malformed_files_are_named(tmp_path: Path, table: Table, suite: Suite, results: Path) -> None:
    with pytest.raises(UserError, match=r"history\.csv: found no file"):
        read_curves(suite, tmp_path, "table2")
    (tmp_path / "history.csv").write_text("epoch,loss\n1,2\n")
    with pytest.raises(UserError, match=r"history.csv: line 2.step: found nothing"):
        read_history(Run(tmp_path))
    write_cells(suite, results, results / "cells.csv")
    with pytest.raises(UserError, match="no cell"):
        figures.draw_comparison(tmp_path / "f", results / "cells.csv", "table3", table)
    assert not list(tmp_path.glob("f.*"))


# --- params


@pytest.mark.parametrize("scale", ["demo", "mini", "paper"])
def test_figures_show_runs_that_tables_have(scale: str) -> None:
    suite = load_suite(scale, ROOT)
    shown = {run for name in suite.figures for cell in figure_cells(suite, name).values() for run in cell.runs}
    assert shown <= {run for cell in suite.cells for run in cell.runs} == set(suite.runs)
    assert {f"comparison_{table}" for table in suite.tables} <= set(suite.figures)


def test_every_figure_that_is_declared_is_made_at_the_papers_scale() -> None:
    declared = yaml.safe_load((ROOT / "params/figures.yaml").read_text())
    assert set(declared) - {"transition"} <= set(load_suite("paper", ROOT).figures)
    assert set(declared) - {"curves_readings", "diagnostics_readings", "transition"} <= set(
        load_suite("demo", ROOT).figures
    )


@pytest.fixture
def edit(tmp_path: Path) -> Callable[[str, str], Path]:
    def change(old: str, new: str) -> Path:
        shutil.copytree(ROOT / "params", tmp_path / "params")
        path = tmp_path / "params/figures.yaml"
        before = path.read_text()
        assert old in before
        path.write_text(before.replace(old, new))
        return tmp_path

    return change


def test_the_transition_is_of_the_scale_that_trains_its_table(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "params", tmp_path / "params")
    scale = tmp_path / "params/scales/mini.yaml"
    scale.write_text(scale.read_text().replace("tables: [claims]", "tables: [claims, transition, others]"))
    assert "transition" in load_suite("mini", tmp_path).figures
    file = tmp_path / "params/figures.yaml"
    file.write_text(file.read_text().replace("{MT: SupOnly,", "{MT: SupOnli,"))
    with pytest.raises(UserError, match="figures.yaml: transition.against: found 'SupOnli', expected 'SupOnly'"):
        load_suite("mini", tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("table: table4", "table: tabel4", "figures.yaml: fig4: found 'tabel4', expected 'table4'"),
        ("row: All", "row: Al", "figures.yaml: fig4.cells.No entropy filter: .*'Al' in table4, expected 'All'"),
        ("row: SupOnly", "row: SupOnli", "no measured row 'SupOnli' in table2"),
        ("pascal_blender, fraction: 1/4", "pascal_blender, fraction: 1/16", "no column pascal_blender 1/16 in table4"),
        ("kind: entropy", "kind: entropie", "figures.yaml: fig2.kind"),
        ("kind: curves, table: table1", "kind: curves", "`table` for curves"),
        ("kind: curves", "kind: classes", "`cells` for the other kinds"),
    ],
)
def test_a_mistake_in_figures_yaml_is_named(
    edit: Callable[[str, str], Path], old: str, new: str, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        load_suite("demo", edit(old, new))


def test_an_unknown_figure_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["u2pl", "figure", "fig3"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'fig3'" in line and "'fig" in line.split("expected")[1]
