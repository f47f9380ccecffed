"""`u2pl check` on records made by hand: what counts as moved, what is said about it, and in which forms."""

import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from made import SHA, evaluation, history, record
from scipy import stats

from u2pl.cli.main import main
from u2pl.errors import UserError
from u2pl.experiments import load_suite
from u2pl.experiments.suite import Suite
from u2pl.files import read_json, sha256, write_json
from u2pl.report import baseline as check

ROOT = Path(__file__).parents[2]
SETTING = "pascal_blender-6-u2pl-seed"
PROVENANCE = {
    "git": {"commit": "a" * 40, "dirty": False, "diff_sha256": None},
    "split_sha256": "b" * 64,
    "data_sha256": "c" * 64,
    "encoder_weights": None,
    "libraries": {**dict.fromkeys(check.LIBRARIES, "1.0"), "python": "3.11.7", "cuda": None},
    "device": "cpu",
    "cpu": "A CPU (x86_64, AVX512)",
    "threads": 1,
    "world_size": 1,
}
NUMBERS = {f"{SETTING}0": (50.0, 49.0, 1.25), f"{SETTING}1": (52.0, 50.0, 1.5), f"{SETTING}2": (51.0, 52.0, 1.0)}


@pytest.fixture
def suite() -> Suite:
    demo = load_suite("demo", ROOT)
    spec = demo.runs[f"{SETTING}0"]
    runs = {f"{SETTING}{seed}": spec.model_copy(update={"seed": seed}) for seed in range(3)}
    return demo.model_copy(update={"runs": runs, "cells": []})


@pytest.fixture
def results(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # no git here
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    for run in NUMBERS:
        finish(suite, tmp_path, run)
    check.write_baseline(suite, tmp_path, tmp_path / "baseline.csv")
    return tmp_path


def finish(suite: Suite, results: Path, run: str, shift: float = 0.0, **provenance: Any) -> None:
    """Make a run, its best mIoU moved by `shift`."""
    folder, (best, last, loss) = results / "runs" / run, NUMBERS[run]
    write_json(folder / "evaluation.json", evaluation(best + shift, last))
    (folder / "history.csv").write_text(history((1, 9.0, None), (2, loss, None)))
    took = PROVENANCE | {"params_sha256": suite.runs[run].params_sha256} | provenance
    write_json(folder / "run.json", record(run, history=sha256(folder / "history.csv"), **took))


def outcomes(suite: Suite, results: Path) -> list[check.Outcome]:
    return check.compare(suite, results, results / "baseline.csv")


def test_equal_runs_pass_and_every_number_is_compared(suite: Suite, results: Path) -> None:
    found = outcomes(suite, results)
    assert [(o.run, o.metric, o.now) for o in found[:3]] == [
        (f"{SETTING}0", "best", 50.0), (f"{SETTING}0", "last", 49.0), (f"{SETTING}0", "loss", 1.25),
    ]  # fmt: skip
    assert len(found) == 9 and not any(o.moved for o in found)


def test_on_the_same_platform_the_last_bit_counts(suite: Suite, results: Path) -> None:
    finish(suite, results, f"{SETTING}1", shift=math.ulp(52.0))
    assert [(o.run, o.metric) for o in outcomes(suite, results) if o.moved] == [(f"{SETTING}1", "best")]


@pytest.mark.parametrize("change", [{"cpu": "Another (x86_64, AVX2)"}, {"threads": 2}, {"device": "H100"}])
def test_on_another_platform_the_spread_over_seeds_decides(suite: Suite, results: Path, change: dict[str, Any]) -> None:
    # three seeds with s = 1
    allowed = stats.t.ppf(1 - 0.05 / 2, 2) * math.sqrt(2)
    for shift, moved in ((0.99 * allowed, []), (1.01 * allowed, ["best"]), (-1.01 * allowed, ["best"])):
        finish(suite, results, f"{SETTING}0", shift=shift, **change)
        assert [o.metric for o in outcomes(suite, results) if o.moved] == moved


def test_without_a_second_seed_the_fallback_decides(suite: Suite, results: Path) -> None:
    one = suite.model_copy(update={"runs": {f"{SETTING}0": suite.runs[f"{SETTING}0"]}})
    check.write_baseline(one, results, results / "baseline.csv")
    for shift, moved in ((4.9, False), (5.1, True)):
        finish(one, results, f"{SETTING}0", shift=shift, cpu="Another")
        assert any(o.moved for o in outcomes(one, results)) is moved


def test_the_false_alarms_are_as_many_as_stated() -> None:
    """Platforms that differ as seeds do: 5 % of the numbers of one metric and run move, and not fewer."""
    import numpy as np

    rng = np.random.default_rng(0)
    names = [f"{setting}-seed{seed}" for setting in "abcd" for seed in range(3)]
    alarms = 0
    for _ in range(2000):
        values, now = rng.standard_normal(12), rng.standard_normal()
        baseline = pd.DataFrame({"best": values, "run": names})
        alarms += abs(now - values[0]) > check.tolerance(baseline, "best")
    assert stats.binom.ppf(1e-6, 2000, 0.05) <= alarms <= stats.binom.isf(1e-6, 2000, 0.05)


def test_what_differs_is_said(suite: Suite, results: Path) -> None:
    libraries = PROVENANCE["libraries"] | {"torch": "1.1"}
    git = {"commit": "d" * 40, "dirty": True, "diff_sha256": "e" * 64}
    finish(suite, results, f"{SETTING}0", shift=40, data_sha256="f" * 64, libraries=libraries, git=git)
    (moved,) = [o for o in outcomes(suite, results) if o.moved]
    assert moved.reasons == [
        "data: cccccccccccc -> ffffffffffff",
        "torch: 1.0 -> 1.1",
        "code: aaaaaaaaaaaa -> dddddddddddd with local changes eeeeeeeeeeee",
    ]
    assert "best mIoU 50 -> 90" in str(moved)


def test_that_nothing_differs_is_said(suite: Suite, results: Path) -> None:
    finish(suite, results, f"{SETTING}0", shift=1)
    (moved,) = [o for o in outcomes(suite, results) if o.moved]
    assert len(moved.reasons) == 1 and "not deterministic" in moved.reasons[0]


def test_github_sees_an_annotation_at_the_line_of_the_run(
    suite: Suite, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(suite, results, f"{SETTING}1", shift=1, libraries=PROVENANCE["libraries"] | {"python": "50 %\n"})
    found = outcomes(suite, results)
    check.render(found, results / "baseline.csv")
    assert "::error" not in capsys.readouterr().out
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    check.render(found, results / "baseline.csv")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("::")]
    assert line.startswith(f"::error file={results / 'baseline.csv'},line=3,title=a metric moved::{SETTING}1")
    assert (results / "baseline.csv").read_text().splitlines()[3 - 1].startswith(f"{SETTING}1,")
    assert line.endswith("%0Apython: 3.11.7 -> 50 %25%0A")


def test_junit_has_a_case_for_each_number(suite: Suite, results: Path) -> None:
    finish(suite, results, f"{SETTING}1", shift=1)
    check.write_junit(outcomes(suite, results), "demo", results / "junit.xml")
    root = ElementTree.parse(results / "junit.xml").getroot()
    assert (root.tag, root.get("tests"), root.get("failures")) == ("testsuite", "9", "1")
    failed = [case for case in root.iter("testcase") if case.find("failure") is not None]
    assert [(case.get("classname"), case.get("name")) for case in failed] == [(f"{SETTING}1", "best")]


def test_an_outdated_run_is_not_compared(suite: Suite, results: Path) -> None:
    finish(suite, results, f"{SETTING}0", params_sha256="0" * 64)
    with pytest.raises(UserError, match=f"{SETTING}0/run.json.*params 000000000000"):
        outcomes(suite, results)


def test_a_run_that_is_not_there_is_named(suite: Suite, results: Path) -> None:
    (results / "runs" / f"{SETTING}2" / "run.json").unlink()
    with pytest.raises(UserError, match=f"{SETTING}2/run.json: found no file"):
        outcomes(suite, results)


def test_a_baseline_without_a_run_of_the_suite_is_refused(suite: Suite, results: Path) -> None:
    path = results / "baseline.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=f"no run {SETTING}2.*make baseline"):
        outcomes(suite, results)


@pytest.mark.parametrize("content", ["", "run,best\na,1\n", "best,last,loss\n1,2,x\n"])
def test_another_file_is_no_baseline(suite: Suite, results: Path, content: str) -> None:
    (results / "baseline.csv").write_text(content)
    with pytest.raises(UserError, match="baseline.csv"):
        outcomes(suite, results)


def test_a_run_that_diverged_is_no_baseline(suite: Suite, results: Path) -> None:
    before = (results / "baseline.csv").read_bytes()
    folder = results / "runs" / f"{SETTING}1"
    (folder / "history.csv").write_text(history((1, math.nan, None)))
    files = {"weights.pt": SHA, "history.csv": sha256(folder / "history.csv")}
    write_json(folder / "run.json", read_json(folder / "run.json") | {"files": files})
    with pytest.raises(UserError, match=f"{SETTING}1/history.csv: line 2.loss: found None"):
        check.write_baseline(suite, results, results / "baseline.csv")
    assert (results / "baseline.csv").read_bytes() == before
    (results / "baseline.csv").write_text(before.decode().replace(",1.25,", ",inf,"))
    with pytest.raises(UserError, match="baseline.csv: found a number that is not finite"):
        outcomes(suite, results)


def test_a_missing_baseline_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["u2pl", "check", "--against", "nowhere.csv"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("u2pl: nowhere.csv: found no file")
