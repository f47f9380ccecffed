"""A finished run as its folder has it: the only reader of evaluation.json."""

import math
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from u2pl.errors import UserError
from u2pl.experiments.read import pick
from u2pl.experiments.records import RunEvaluation, RunRecord, Scores, read
from u2pl.experiments.suite import Suite
from u2pl.folders import Results

ROUNDING = 1e-12  # relative; one pixel of Cityscapes' validation set changes a mIoU by more


@dataclass(frozen=True)
class Run:
    """run.json and evaluation.json, and the mean IoU in percent of the checkpoints "best" and "last"."""

    record: RunRecord
    evaluation: RunEvaluation
    miou: dict[str, float]


def read_run(suite: Suite, results: Path, run: str) -> Run:
    """Read a run; runs of former settings are not in the suite, and can be read all the same.

    A training removes both files before it writes, and writes run.json last, so a killed one leaves none. `u2pl verify`
    checks whether weights.pt itself is the evaluated one: hashing half a gigabyte per run would delay every table.

    Raises UserError if the run has not been made or is unknown, a file is malformed, the evaluation is of other weights
    than those that run.json records, or its scores are not those of its confusion matrices.
    """
    folder = Results(results).run(run)
    if run not in suite.runs and run not in {path.name for path in folder.folder.parent.glob("*")}:
        pick({**suite.runs, **suite.tables}, run, f"run or table at scale {suite.scale!r}")
    again = command(suite, results, [run])
    for path in (folder.record, folder.evaluation):
        if not path.is_file():
            raise UserError(path, "no file", f"a finished run: {again}")
    record, evaluation = read(RunRecord, folder.record), read(RunEvaluation, folder.evaluation)
    if record.id != run:
        raise UserError(folder.record, f"the run {record.id[:80]}", f"the record of {run}")
    if (found := evaluation.weights_sha256) != record.files.weights:
        raise UserError(folder.evaluation, f"weights_sha256 {found}", f"{record.files.weights} of run.json: {again}")
    for name, scores in evaluation.checkpoints.items():
        check_scores(folder.evaluation, name, scores)
    return Run(record, evaluation, {name: scores.miou for name, scores in evaluation.checkpoints.items()})


def check_scores(path: Path, name: str, scores: Scores) -> NDArray[np.int64]:
    """The confusion matrix of a checkpoint. Raises UserError unless its IoU per class and mean are as recorded."""
    size = len(scores.iou)
    if not size or len(scores.confusion) != size or any(len(row) != size for row in scores.confusion):
        raise UserError(path, f"{name}.confusion of {len(scores.confusion)} rows", f"{size} rows of {size} counts")
    counts = np.array(scores.confusion, dtype=np.int64)
    intersection = counts.diagonal()
    with np.errstate(invalid="ignore"):
        iou = 100 * intersection / (counts.sum(0) + counts.sum(1) - intersection)
    expected_miou = math.nan if np.isnan(iou).all() else float(np.nanmean(iou))
    pairs: list[tuple[str, float | None, float]] = [("miou", scores.miou, expected_miou)]
    pairs += zip((f"iou.{c}" for c in range(size)), scores.iou, iou.tolist(), strict=True)
    for where, found, expected in pairs:
        same = math.isnan(expected) if found is None else math.isclose(found, expected, rel_tol=ROUNDING)
        if not same:
            raise UserError(path, f"{name}.{where} {found}", f"{expected} of its confusion matrix")
    return counts


def command(suite: Suite, results: Path, runs: list[str]) -> str:
    """The shell command that trains and evaluates the runs again."""
    threads = max((suite.runs[run].recipe.threads for run in runs if run in suite.runs), default=1)
    targets = [str(Results(results).run(run).evaluation) for run in runs]
    # --config takes all words up to the next option.
    options = ["--cores", str(threads), "--config", f"scale={suite.scale}", "--force"]
    return shlex.join(["snakemake", *options, *targets])
