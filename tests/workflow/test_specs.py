"""Specifications and receipts decide what Snakemake plans: in a fresh clone, after edits, and after kill -9."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from u2pl.experiments import load_suite
from u2pl.experiments.specs import PLANNED, Jobs, write_specs

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
RUNS = ["pascal_classic-4-suponly-seed0", "pascal_classic-4-u2pl-r_low=2-seed0"]
CELL = {"table": "small", "row": "U2PL", "protocol": "pascal_classic", "fraction": "1/8"}
FIGURES = {"fig1": {"kind": "classes", "caption": "Classes.", "cells": {"U2PL": CELL}}}
PROFILE = ["--profile", "demo"]
NO_PROFILE = ["--cores", "2"]


def command(*arguments):
    return [str(BIN / "snakemake"), *arguments]


def snakemake(folder, *arguments):
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(command(*arguments), cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    return done.returncode, done.stdout + done.stderr


def ok(folder, *arguments):
    code, text = snakemake(folder, *arguments)
    assert code == 0, text
    return text


def planned(folder, *arguments):
    """The rules that a dry run would run, and the runs it would train."""
    text = ok(folder, "-n", *arguments)
    rules = set(re.findall(r"^(?:local)?rule (\w+):", text, re.M)) - {"all"}
    assert rules or "Nothing to be done" in text, text
    return rules, re.findall(r"^    output: results/demo/runs/(.+?)/run\.json", text, re.M)


NOTHING = (set(), [])
REPORT = {"cells", "table", "figure", "predicted_figure", "page"}


def edit(folder, file, change):
    """Change a params file; returns how it was."""
    path = folder / "params" / file
    before = path.read_text()
    value = yaml.safe_load(before)
    change(value)
    path.write_text(yaml.safe_dump(value))
    return before


@pytest.fixture(scope="module")
def home(tmp_path_factory, small_checkout):
    folder = small_checkout(tmp_path_factory.mktemp("specs") / "home", FIGURES, {"r_low": 2})
    ok(folder, *PROFILE)
    return folder


@pytest.fixture
def clone(home, tmp_path):
    """What git and DVC bring: no records of Snakemake, no upstream, no prepared files; dates in any order."""
    folder = tmp_path / "clone"
    ignored = shutil.ignore_patterns(".snakemake", "upstream", "images", "masks", "lists", "logs", "state", ".lock")
    shutil.copytree(home, folder, symlinks=True, ignore=ignored)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    random.Random(0).shuffle(files)
    for number, path in enumerate(files):
        os.utime(path, (time.time() - number, time.time() - number))
    return folder


@pytest.mark.parametrize("arguments", [PROFILE, NO_PROFILE], ids=["profile", "no profile"])
@pytest.mark.parametrize("specs", ["versioned", "absent"])
def test_a_fresh_clone_has_nothing_to_do(clone, arguments, specs):
    if specs == "absent":
        shutil.rmtree(clone / "results/demo/specs")
    assert planned(clone, *arguments) == NOTHING
    assert planned(clone, *arguments) == NOTHING, "nor does a second look find anything"


def test_without_the_data_the_results_are_judged_alone(clone):
    shutil.rmtree(clone / "data")
    assert planned(clone, *PROFILE) == NOTHING
    before = edit(clone, "scales/demo.yaml", lambda scale: scale["datasets"]["pascal"]["synthetic"].update(seed=7))
    assert sorted(planned(clone, *PROFILE)[1]) == RUNS, "other images, although none are here"
    (clone / "params/scales/demo.yaml").write_text(before)
    assert planned(clone, *PROFILE) == NOTHING


@pytest.mark.parametrize("arguments", [PROFILE, NO_PROFILE], ids=["profile", "no profile"])
@pytest.mark.parametrize("when", ["before the pull", "after the pull"])
def test_one_changed_value_plans_the_runs_that_it_changes(clone, arguments, when):
    if when == "after the pull":
        assert planned(clone, *arguments) == NOTHING
    before = edit(clone, "tables/small.yaml", lambda table: table["rows"][0].update(title="Only labelled"))
    assert planned(clone, *arguments) == ({"cells", "table", "figure", "page"}, []), "a title trains nothing"
    (clone / "params/tables/small.yaml").write_text(before)
    before = edit(clone, "recipes.yaml", lambda recipes: recipes["pascal"].update(momentum=0.8))
    rules, runs = planned(clone, *arguments)
    assert sorted(runs) == RUNS and rules == {"train", *REPORT}
    (clone / "params/recipes.yaml").write_text(before)
    assert planned(clone, *arguments) == NOTHING, "an edit taken back"


def test_only_the_run_that_uses_a_setting_is_planned(clone):
    edit(clone, "tables/small.yaml", lambda table: table["rows"][2].update(overrides={"r_low": 1}))
    assert planned(clone, *PROFILE)[1] == [RUNS[1].replace("=2", "=1")]


def test_a_colour_redraws_and_trains_nothing(clone):
    edit(clone, "datasets.yaml", lambda sets: sets["pascal"]["classes"][1].update(colour=[1, 2, 3]))
    assert planned(clone, *PROFILE) == ({"predicted_figure", "page"}, [])


def test_another_ignore_label_prepares_the_data_and_trains(clone):
    edit(clone, "datasets.yaml", lambda sets: sets["pascal"].update(ignore_label=254))
    rules, runs = planned(clone, *PROFILE)
    assert sorted(runs) == RUNS and "prepare_pascal" in rules


def test_touch_does_not_bless_stale_results(clone):
    edit(clone, "recipes.yaml", lambda recipes: recipes["pascal"].update(momentum=0.8))
    ok(clone, *PROFILE, "--touch")
    assert sorted(planned(clone, *PROFILE)[1]) == RUNS


def test_other_data_beside_a_result_plans_it(clone):
    assert planned(clone, *PROFILE) == NOTHING
    path = clone / "data/demo/pascal/manifest.json"
    path.write_text(path.read_text().replace('"files": ', '"files": 1'))
    assert sorted(planned(clone, *PROFILE)[1]) == RUNS


def test_a_link_into_a_cache_is_never_dated(clone, tmp_path):
    """DVC may link results to its cache, which other checkouts share."""
    cached = []
    for number, path in enumerate(sorted((clone / "results/demo/runs").rglob("*.json"))):
        target = tmp_path / f"{number}.json"
        shutil.move(path, target)
        os.utime(target, (time.time(), time.time()))
        path.symlink_to(target) if number % 2 else path.hardlink_to(target)
        cached.append((target, target.stat().st_mtime_ns))
    assert planned(clone, *PROFILE) == NOTHING
    assert [(path, path.stat().st_mtime_ns) for path, _ in cached] == cached


def test_specifications_are_written_only_where_they_changed(clone):
    os.chdir(clone)
    suite = load_suite("demo")
    write_specs(Jobs(suite))
    root = clone / "results/demo/specs"
    before = {path: path.stat().st_ino for path in root.rglob("*.json")}
    edit(clone, "datasets.yaml", lambda sets: sets["pascal"]["classes"][1].update(colour=[1, 2, 3]))
    write_specs(Jobs(load_suite("demo")))
    changed = {str(path.relative_to(root)) for path in before if path.stat().st_ino != before[path]}
    assert changed == {"figure/fig1.json", "page/all.json"}


def start(folder, log, *arguments):
    with log.open("w") as stream:
        return subprocess.Popen(command(*arguments), cwd=folder, stdout=stream, stderr=stream, start_new_session=True)


def wait_for(process, condition):
    while not condition():
        assert process.poll() is None, "ended before it came to that"
        time.sleep(0.05)


def test_kill_9_and_the_same_command_again(home, clone, tmp_path):
    table = (clone / "results/demo/tables/small.tex").read_bytes()
    shutil.rmtree(clone / "results/demo/runs" / RUNS[0])
    (clone / "results/demo/tables/small.tex").unlink()
    process = start(clone, tmp_path / "log", *PROFILE)
    wait_for(process, lambda: "rule train:" in (tmp_path / "log").read_text())
    os.killpg(process.pid, signal.SIGSTOP)  # or it would end before the others have looked
    code, text = snakemake(clone, *PROFILE)
    assert code != 0 and "found another Snakemake at work on this scale" in text, "a second one is refused"
    ok(clone, "-n", *PROFILE)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (clone / "results/demo/runs" / RUNS[0] / "run.json").exists(), "killed too late"
    ok(clone, *PROFILE)
    assert (clone / "results/demo/tables/small.tex").read_bytes() == table
    assert planned(clone, *PROFILE) == NOTHING


def test_a_job_does_what_was_planned_or_nothing(clone, monkeypatch):
    """Params edited between plan and start: the job refuses, the next plan has them; by hand they count at once."""
    os.chdir(clone)
    write_specs(Jobs(load_suite("demo")))
    spec = clone / "results/demo/specs/table/small.json"
    before = spec.read_bytes()
    edit(clone, "tables/small.yaml", lambda table: table.update(caption="Another."))
    monkeypatch.setenv(PLANNED, "1")
    done = subprocess.run([sys.executable, "-m", "u2pl", "table", "small"], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "specs/table/small.json: found another specification than today's params give" in done.stderr
    assert spec.read_bytes() == before
    monkeypatch.delenv(PLANNED)
    done = subprocess.run([sys.executable, "-m", "u2pl", "table", "small"], capture_output=True, text=True)
    assert done.returncode == 0 and b"Another." in spec.read_bytes(), done.stderr


def test_we_never_name_the_folder_of_snakemake():
    root = Path(__file__).parents[2]
    sources = [root / "Snakefile", *root.glob("workflow/**/*"), *root.glob("u2pl/**/*.py")]
    assert [path for path in sources if path.is_file() and ".snakemake" in path.read_text(errors="replace")] == []
