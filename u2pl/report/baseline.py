"""`u2pl check`: the runs' numbers against a committed baseline, and what differs where one moved.

A run's numbers are the mIoU of both checkpoints and the mean loss of its last epoch, which moves before a mIoU does. On
the machine and with the libraries that made the baseline a run is bit-identical, so that any change counts. Elsewhere
rounding differs, which training amplifies until two runs of equal settings are as far apart as two seeds: there the
tolerance follows from the spread over seeds.
"""

import math
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from u2pl.errors import UserError
from u2pl.experiments.read import pick
from u2pl.experiments.records import plain
from u2pl.experiments.suite import Suite
from u2pl.files import atomic_path
from u2pl.folders import Results
from u2pl.report.history import read_history
from u2pl.report.runs import command, read_run
from u2pl.report.statistics import ALPHA, Sample

METRICS = {"best": "best mIoU", "last": "last mIoU", "loss": "loss"}
# Where all of these are equal, so is every bit.
LIBRARIES = ("torch", "cuda", "cudnn", "torchvision", "numpy", "pillow", "libjpeg")
PLATFORM = ("device", "cpu", "threads", "world_size", *LIBRARIES)
# What else a number may have moved by.
ORIGIN = ("params_sha256", "split_sha256", "data_sha256", "encoder_sha256", "commit", "diff_sha256", "python")
COLUMNS = ["run", *METRICS, *ORIGIN, *PLATFORM]
# On another platform, where no run has a second seed: percent mIoU, and nats. See docs/results.md.
SINGLE_SEED_TOLERANCE = {"best": 5.0, "last": 5.0, "loss": 0.5}
RENEW = "If that is meant, `make baseline` renews the baseline."


@dataclass(frozen=True)
class Outcome:
    """One number against the baseline's; `reasons` says what differs between the two runs."""

    run: str
    metric: str
    before: float
    now: float
    tolerance: float
    line: int  # in the baseline, from 1
    reasons: list[str]

    @property
    def moved(self) -> bool:
        return not abs(self.now - self.before) <= self.tolerance

    def __str__(self) -> str:
        allowed = f"up to {self.tolerance:.4g}" if self.tolerance else "none, on the same platform"
        change = f"{self.before:.6g} -> {self.now:.6g} (change {self.now - self.before:+.3g}; allowed: {allowed})"
        return f"{self.run}: {METRICS[self.metric]} {change}"


def measure(suite: Suite, results: Path, run: str) -> dict[str, Any]:
    """The row of a finished run: its numbers, and what they depend on, as text.

    Raises UserError if the run has not been made, or with other params than today's.
    """
    today = pick(suite.runs, run, f"run at scale {suite.scale!r}").params_sha256
    done = read_run(suite, results, run)
    folder, provenance = Results(results).run(run), done.record.provenance
    facts = {**provenance.libraries, **plain(provenance.git), **plain(provenance)}
    facts["encoder_sha256"] = provenance.encoder_weights.sha256 if provenance.encoder_weights else None
    known = {}
    for name in (*ORIGIN, *PLATFORM):
        value = pick(facts, name, f"{folder.record}: provenance")
        known[name] = "" if value is None else str(value)
    if provenance.params_sha256 != today:
        again = command(suite, results, [run])
        raise UserError(folder.record, f"params {provenance.params_sha256[:12]}", f"{today[:12]}, today's: {again}")
    return {"run": run, **done.miou, "loss": float(read_history(folder)["loss"].iloc[-1]), **known}


def write_baseline(suite: Suite, results: Path, target: Path) -> None:
    """Write one row per baseline run of the suite to the CSV file `target`, atomically."""
    rows = pd.DataFrame([measure(suite, results, run) for run in suite.baseline_runs], columns=COLUMNS)
    with atomic_path(target) as temporary:
        rows.to_csv(temporary, index=False, lineterminator="\n")


def read_baseline(path: Path) -> pd.DataFrame:
    """Read a baseline; raises UserError if it is missing or is none."""
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        rows = rows.astype(dict.fromkeys(METRICS, float))
    except FileNotFoundError as error:
        raise UserError(path, "no file", "a baseline, which `u2pl baseline` writes") from error
    except (OSError, ValueError, KeyError) as error:
        raise UserError(path, error, "a baseline, which `u2pl baseline` writes") from error
    if list(rows.columns) != COLUMNS or rows.empty or not rows["run"].is_unique:
        raise UserError(path, f"columns {', '.join(rows.columns)}", f"{', '.join(COLUMNS)}, and one row a run")
    if not np.isfinite(rows[list(METRICS)]).all(axis=None):
        raise UserError(path, "a number that is not finite", "a baseline, which `u2pl baseline` writes")
    return rows


def tolerance(baseline: pd.DataFrame, metric: str) -> float:
    """How far a run's metric on another platform may be from the baseline's.

    The difference of two seeds has the variance 2 s^2, with s the standard deviation over seeds, pooled over the
    baseline's settings: another seed exceeds the tolerance with a probability of ALPHA. Rounding alone stays far below
    that in short trainings, so the number of comparisons is not corrected for, which would find next to nothing.
    SINGLE_SEED_TOLERANCE where no setting has two seeds that differ.
    """
    settings = baseline["run"].str.replace(r"-seed\d+$", "", regex=True)
    samples = [Sample.of(values.tolist()) for _, values in baseline.groupby(settings)[metric]]
    freedom = sum(sample.n - 1 for sample in samples)
    squares = sum((sample.n - 1) * sample.std**2 for sample in samples if sample.spread_known)
    if squares == 0:
        return SINGLE_SEED_TOLERANCE[metric]
    return float(stdtrit(freedom, 1 - ALPHA / 2)) * math.sqrt(2 * squares / freedom)


def compare(suite: Suite, results: Path, path: Path) -> list[Outcome]:
    """Compare the runs of the baseline `path` with those of today.

    Raises UserError if the baseline is none, or lacks a run of the suite's, or a run is missing or outdated.
    """
    baseline = read_baseline(path)
    if lacking := [run for run in suite.baseline_runs if run not in set(baseline["run"])]:
        raise UserError(path, f"no run {lacking[0]}", "all baseline runs: `make baseline` writes them")
    allowed = {metric: tolerance(baseline, metric) for metric in METRICS}
    outcomes = []
    for number, then in enumerate(baseline.to_dict("records")):
        now = measure(suite, results, str(then["run"]))
        exact = all(then[name] == now[name] for name in PLATFORM)
        for metric in METRICS:
            limit = 0.0 if exact else allowed[metric]
            # The header is line 1.
            outcome = Outcome(now["run"], metric, float(then[metric]), float(now[metric]), limit, number + 2, [])
            outcomes.append(replace(outcome, reasons=why(then, now)) if outcome.moved else outcome)
    return outcomes


def why(then: dict[Any, Any], now: dict[Any, Any]) -> list[str]:
    """What differs between two rows, a line each; that nothing does is a reason, too."""
    code = ("commit", "diff_sha256")
    lines = [
        f"{name.removesuffix('_sha256')}: {_short(then[name])} -> {_short(now[name])}"
        for name in (*ORIGIN, *PLATFORM)
        if then[name] != now[name] and name not in code
    ]
    if any(then[name] != now[name] for name in code):
        lines.append(f"code: {_code(then)} -> {_code(now)}{_changed_files(then['commit'], now['commit'])}")
    return lines or ["nothing that is recorded: the code was changed without git, or the run is not deterministic"]


def _short(value: str) -> str:
    return value[:12] if re.fullmatch("[0-9a-f]{40,64}", value) else value or "none"


def _code(row: dict[Any, Any]) -> str:
    return _short(row["commit"]) + (f" with local changes {_short(row['diff_sha256'])}" if row["diff_sha256"] else "")


def _changed_files(before: str, after: str) -> str:
    """The files of the package and of params that two commits differ in; nothing where git does not know both."""
    if not before or not after or before == after:
        return ""
    arguments = ["git", "diff", "--name-only", before, after, "--", "u2pl", "params"]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f" ({', '.join(done.stdout.split())})" if done.returncode == 0 and done.stdout else ""


def render(outcomes: Sequence[Outcome], path: Path) -> None:
    """Print what moved and why it may have, then the counts; on GitHub with an annotation for each that moved."""
    moved = [outcome for outcome in outcomes if outcome.moved]
    for outcome in moved:
        print("\n  ".join([str(outcome), *outcome.reasons]))
        annotate(path, outcome.line, "a metric moved", "\n".join([str(outcome), *outcome.reasons]))
    exact = sum(not outcome.tolerance for outcome in outcomes)
    print(f"{len(outcomes)} numbers, {exact} of them compared exactly: {len(moved)} moved from {path}")
    if moved:
        print(RENEW)


def annotate(path: Path, line: int, title: str, text: str) -> None:
    """On GitHub, an error at a line of a file."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for character, code in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A")):
            text = text.replace(character, code)
        print(f"::error file={path},line={line},title={title}::{text}")


def write_junit(outcomes: Sequence[Outcome], scale: str, target: Path) -> None:
    """Write a JUnit XML test case for each number, atomically."""
    failures = str(sum(outcome.moved for outcome in outcomes))
    counts = {"name": f"u2pl check {scale}", "tests": str(len(outcomes)), "failures": failures, "errors": "0"}
    suite = ElementTree.Element("testsuite", counts)
    for outcome in outcomes:
        case = ElementTree.SubElement(suite, "testcase", {"classname": outcome.run, "name": outcome.metric})
        if outcome.moved:
            failure = ElementTree.SubElement(case, "failure", {"message": str(outcome)})
            failure.text = "\n".join(outcome.reasons)
    with atomic_path(target) as temporary:
        ElementTree.ElementTree(suite).write(temporary, encoding="utf-8", xml_declaration=True)
