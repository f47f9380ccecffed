"""A small table from archives to LaTeX, and what is made again after an edit or an interruption."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SNAKEMAKE = str(Path(sys.executable).parent / "snakemake")
CELL = {"table": "small", "protocol": "pascal_classic", "fraction": "1/8"}
FIGURES = {
    "fig1": {"kind": "classes", "caption": "Classes.", "cells": {"U2PL": CELL | {"row": "U2PL"}}},
    "fig4": {"kind": "predictions", "caption": "Images.", "cells": {r: CELL | {"row": r} for r in ("SupOnly", "U2PL")}},
}
RUNS = [f"results/demo/runs/pascal_classic-4-{method}-seed0" for method in ("suponly", "u2pl")]


def snakemake(cwd, *arguments):
    return subprocess.run([SNAKEMAKE, *arguments], cwd=cwd, capture_output=True, text=True, timeout=500)


def trained(done):
    """The runs that a dry run would train."""
    assert done.returncode == 0, done.stdout + done.stderr
    text = done.stdout + done.stderr
    return {run for run in RUNS if f"output: {run}/run.json" in text}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_checkout):
    """A checkout whose only table has been made."""
    folder = small_checkout(tmp_path_factory.mktemp("checkout"), FIGURES)
    done = snakemake(folder, "--profile", "demo")
    logs = "\n".join(path.read_text() for path in folder.glob("logs/demo/**/*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    return folder


def test_the_table_holds_what_the_evaluations_say(finished):
    cells = pd.read_csv(finished / "results/demo/cells.csv")
    wide = (finished / "results/demo/tables/small.csv").read_text()
    assert list(cells.source) == ["measured", "quoted", "measured"]
    for run, mean in zip(RUNS, cells[cells.source == "measured"]["mean"], strict=True):
        confusion = json.loads((finished / run / "evaluation.json").read_text())["best"]["confusion"]
        ious = []
        for c, row in enumerate(confusion):
            union = sum(row) + sum(other[c] for other in confusion) - row[c]
            ious += [row[c] / union] if union else []
        assert math.isclose(mean, 100 * sum(ious) / len(ious), rel_tol=1e-9)
        assert f"{mean:.2f}"[:4] in wide
    assert "synthetic" in (finished / "results/demo/tables/small.tex").read_text()


def test_the_classes_are_those_of_the_evaluations_and_of_each_image(finished):
    classes = pd.read_csv(finished / "results/demo/classes.csv")
    assert len(classes) == 2 * 22 and set(classes["images"]) == {8} and classes["image_low"].notna().any()
    for run, rows in zip(RUNS, (classes[:22], classes[22:]), strict=True):
        best = json.loads((finished / run / "evaluation.json").read_text())["best"]
        expected = [best["miou"], *(np.nan if value is None else value for value in best["iou"])]
        np.testing.assert_allclose(rows["mean"].to_numpy(float), expected)
        with np.load(finished / run / "images.npz") as file:
            assert int(file["best.pixels"].sum()) == np.sum(best["confusion"])


def test_figures_and_the_page_are_made_of_the_runs(finished):
    made = {path.name for path in (finished / "results/demo/figures").iterdir()}
    assert made == {f"{name}.{kind}" for name in (*FIGURES, "comparison_small") for kind in ("pdf", "png")}
    page = (finished / "results/demo/index.html").read_text()
    assert all(Path(run).name in page for run in RUNS)


def test_the_report_holds_tables_figures_and_runs_without_a_network(finished):
    report = ["--profile", "demo", "--report", "report.html"]
    # a network namespace of its own has not even the loopback device up
    alone = ["unshare", "--net", "--map-root-user"]
    cut = subprocess.run([*alone, "true"], capture_output=True).returncode == 0 if shutil.which("unshare") else False
    command = [*(alone if cut else []), SNAKEMAKE, *report]
    done = subprocess.run(command, cwd=finished, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (finished / "report.html").read_text()
    for category in ("Tables", "Figures", "Runs"):
        assert f'"{category}"' in page
    results = [f"{run}/{name}" for run in RUNS for name in ("run.json", "history.csv")]
    results += ["results/demo/cells.csv", "results/demo/tables/small.csv", "results/demo/index.html"]
    results += [f"results/demo/figures/{name}.png" for name in (*FIGURES, "comparison_small")]
    assert [name for name in results if f'"{name}"' not in page] == []
    assert "A small table." in page, "captions are rendered"
    # the page is whole: no address of a script, style or picture
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']?(https?:)?//", page)


def test_dvclive_ends_where_the_history_ends(finished):
    for run in RUNS:
        last = pd.read_csv(finished / run / "history.csv").iloc[-1]
        live = json.loads((finished / run / "live/metrics.json").read_text())
        assert math.isclose(live["val_miou"], last["val_miou"]) and math.isclose(live["loss"], last["loss"])


def test_an_edited_split_list_stops_the_training(finished):
    folder = finished / "data/demo/splits/pascal_classic/drawn/4/seed0"
    before = (folder / "labeled.txt").read_text()
    validation = (folder / "val.txt").read_text().split()[0]
    try:
        (folder / "labeled.txt").write_text(before + validation + "\n")
        command = [sys.executable, "-m", "u2pl", "train", Path(RUNS[0]).name]
        done = subprocess.run(command, cwd=finished, capture_output=True, text=True)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert validation in done.stderr and "labeled.txt" in done.stderr
        assert (finished / RUNS[0] / "run.json").exists()
    finally:
        (folder / "labeled.txt").write_text(before)


def test_suponly_learns_the_demo_data(finished, tmp_path):
    """At the largest fraction it has three times the mIoU of background everywhere: its recipe is long enough."""
    import torch

    from u2pl.data.splits.draw import draw
    from u2pl.engine.evaluate import evaluate, mean_iou, network_of, pad_label
    from u2pl.engine.train import train
    from u2pl.experiments import load_suite

    suite = load_suite("demo", ROOT)
    spec = suite.runs["pascal_classic-32-suponly-seed0"]
    prepared = finished / "data/demo/pascal"
    draw(suite.protocols["pascal_classic"], 32, prepared, tmp_path / "split", 0)
    ids = (tmp_path / "split/val.txt").read_text().split()
    untrained = network_of(spec)
    confusion = evaluate(untrained, prepared, ids, spec.dataset, torch.device("cpu"), pad=pad_label(spec))
    truth = confusion.sum(dim=1)  # pixels of each class, whatever is predicted
    nothing_else = torch.zeros_like(confusion)
    nothing_else[:, 0] = truth
    train(spec, prepared=prepared, split=tmp_path / "split", weights=None, out=tmp_path / "run", state=tmp_path / "s")
    learned = json.loads((tmp_path / "run/evaluation.json").read_text())["best"]["miou"]
    assert learned >= 3 * mean_iou(nothing_else)


def test_fig4_shows_more_than_background_and_one_class(finished, monkeypatch):
    from u2pl.cli.figure import _draw_predicted
    from u2pl.experiments import load_suite
    from u2pl.report import figures

    monkeypatch.chdir(finished)
    drawn = {}
    monkeypatch.setattr(figures, "draw_predictions", lambda *arguments: drawn.update(arguments[-1]))
    _draw_predicted(load_suite("demo"), "fig4", Path("unused"), "cpu")
    assert set(drawn) == {"SupOnly", "U2PL"}
    assert max(len(np.unique(labels)) for images in drawn.values() for labels in images) >= 3


def test_a_fork_trains_what_a_process_of_its_own_trains(finished, tmp_path):
    """The profile demo made the checkout by forks."""
    folder = tmp_path / "checkout"
    shutil.copytree(
        finished, folder, ignore=shutil.ignore_patterns("archives", "upstream", ".snakemake"), symlinks=True
    )
    for run in RUNS:
        shutil.rmtree(folder / run)
        subprocess.run([sys.executable, "-m", "u2pl", "train", Path(run).name], cwd=folder, check=True)
        assert (folder / run / "weights.pt").read_bytes() == (finished / run / "weights.pt").read_bytes()


def test_a_second_call_does_nothing(finished):
    assert "Nothing to be done" in (text := snakemake(finished, "--profile", "demo")).stdout + text.stderr


def test_one_value_reruns_exactly_the_affected_runs(finished):
    path = finished / "params/methods.yaml"
    before = path.read_text()
    try:
        params = yaml.safe_load(before)
        params["u2pl"]["settings"] = {"tau": 0.25}
        path.write_text(yaml.safe_dump(params))
        assert trained(snakemake(finished, "--profile", "demo", "-n")) == {RUNS[1]}
    finally:
        path.write_text(before)


@pytest.mark.parametrize(
    ("file", "old", "new", "made"),
    [
        ("tables/small.yaml", "A small table.", "A tiny table.", {"table", "figure", "page"}),
        ("tables/small.yaml", "title: PseudoSeg", "title: Pseudo", {"cells", "table", "figure", "page"}),
        ("scales/demo.yaml", "title: a smoke test", "title: a test", {"cells", "table", "page"}),
        ("scales/demo.yaml", "synthetic: true", "equivalence_margin: 2.0\nsynthetic: true", {"cells", "table", "page"}),
        ("figures.yaml", "caption: Images.", "caption: Pictures.", {"predicted_figure"}),
    ],
)
def test_what_is_shown_is_made_again_and_nothing_is_trained(finished, file, old, new, made):
    path = finished / "params" / file
    before = path.read_text()
    try:
        assert old in before
        path.write_text(before.replace(old, new, 1))
        done = snakemake(finished, "--profile", "demo", "-n")
    finally:
        path.write_text(before)
    assert done.returncode == 0, done.stdout + done.stderr
    rules = set(re.findall(r"^(?:local)?rule (\w+):", done.stdout + done.stderr, re.M)) - {"all"}
    # What follows from cells.csv, which may turn out the same, is listed too.
    assert made <= rules <= made | {"figure", "page"}


def test_another_ignore_label_prepares_the_data_again(finished):
    path = finished / "params/datasets.yaml"
    before = path.read_text()
    try:
        params = yaml.safe_load(before)
        params["pascal"]["ignore_label"] = 254
        path.write_text(yaml.safe_dump(params))
        done = snakemake(finished, "--profile", "demo", "-n")
    finally:
        path.write_text(before)
    assert "rule prepare_pascal:" in done.stdout + done.stderr and trained(done) == set(RUNS)


def test_an_environment_below_a_folder_with_a_space(finished, tmp_path):
    (tmp_path / "an environment").symlink_to(Path(SNAKEMAKE).parents[1])
    python = tmp_path / "an environment/bin/python"
    page = finished / "results/demo/index.html"
    before = page.read_bytes()
    command = [python, "-m", "snakemake", "--profile", "demo", "--force", str(page.relative_to(finished))]
    done = subprocess.run(command, cwd=finished, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert page.read_bytes() == before


def test_what_the_machine_is_asked_for_reruns_nothing(finished):
    path = finished / "params/scales/demo.yaml"
    before = path.read_text()
    try:
        path.write_text(before.replace("validation: 0.1,", "validation: 9,").replace("mem_mb: 2000", "mem_mb: 1000"))
        assert trained(snakemake(finished, "--profile", "demo", "-n")) == set()
    finally:
        path.write_text(before)


def test_a_killed_training_leaves_nothing_that_looks_complete_and_is_made_again(finished):
    run = finished / RUNS[0]
    weights = (run / "weights.pt").read_bytes()
    shutil.rmtree(run)
    command = [SNAKEMAKE, "--profile", "demo", f"{RUNS[0]}/evaluation.json"]
    process = subprocess.Popen(
        command, cwd=finished, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    log = finished / "logs/demo/train/pascal_classic-4-suponly-seed0.log"
    started = time.time()
    while not (log.exists() and log.stat().st_mtime > started - 1) and time.time() < started + 60:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "run.json").exists()
    assert snakemake(finished, *command[1:]).returncode == 0
    assert (run / "weights.pt").read_bytes() == weights
