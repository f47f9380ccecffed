"""A finished run as its folder has it: the only reader of evaluation.json."""

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from u2pl.errors import UserError
from u2pl.experiments.params import pick
from u2pl.experiments.schema import Suite
from u2pl.files import read_fields, read_json, sha256

ROUNDING = 1e-12  # relative; one pixel of Cityscapes' validation set changes a mIoU by more


@dataclass(frozen=True)
class Run:
    """run.json and evaluation.json, and the mean IoU in percent of the checkpoints "best" and "last"."""

    record: dict[str, Any]
    evaluation: dict[str, Any]
    miou: dict[str, float]


def read_run(suite: Suite, results: Path, run: str) -> Run:
    """Read a run; runs of former settings are not in the suite, and can be read all the same.

    A training removes both files before it writes, and writes run.json last, so a killed one leaves none. `u2pl verify`
    checks whether weights.pt itself is the evaluated one: hashing half a gigabyte per run would delay every table.

    Raises UserError if the run has not been made or is unknown, a file is malformed, the evaluation is of other weights
    than those that run.json records, or its scores are not those of its confusion matrices.
    """
    folder = results / "runs" / run
    source, target = folder / "run.json", folder / "evaluation.json"
    if run not in suite.runs and run not in {path.name for path in folder.parent.glob("*")}:
        pick({**suite.runs, **suite.tables}, run, f"run or table at scale {suite.scale!r}")
    again = command(suite, results, [run])
    for path in (source, target):
        if not path.is_file():
            raise UserError(path, "no file", f"a finished run: {again}")
    record, evaluation = read_json(source), read_json(target)
    if not isinstance(record, dict) or record.get("id") != run:
        raise UserError(source, "another content", f"the record of {run}")
    miou = {name: _miou(target, evaluation, name) for name in ("best", "last")}
    files = record.get("files")
    recorded = files.get("weights.pt") if isinstance(files, dict) else None
    if not isinstance(recorded, str):
        raise UserError(source, "no files.weights.pt", "the record of a run by this version")
    if (found := evaluation.get("weights_sha256")) != recorded:
        raise UserError(target, f"weights_sha256 {str(found)[:64]}", f"{recorded} of run.json: {again}")
    for name in miou:
        if "confusion" in evaluation[name]:
            check_scores(target, name, evaluation[name])
    return Run(record, evaluation, miou)


def check_scores(path: Path, name: str, scores: dict[str, Any]) -> NDArray[np.int64]:
    """The confusion matrix of a checkpoint. Raises UserError unless its IoU per class and mean are as recorded."""
    try:
        counts = np.array(scores["confusion"])
        recorded = scores["iou"]
        if counts.shape != (len(recorded), len(recorded)) or counts.dtype.kind != "i" or (counts < 0).any():
            found = f"{name}.confusion {counts.dtype} {counts.shape}"
            raise UserError(path, found, f"{len(recorded)} rows of counts")
        intersection = counts.diagonal()
        with np.errstate(invalid="ignore"):
            iou = 100 * intersection / (counts.sum(0) + counts.sum(1) - intersection)
        pairs = [("miou", scores["miou"], float(np.nanmean(iou)) if not np.isnan(iou).all() else math.nan)]
        pairs += zip((f"iou.{c}" for c in range(len(iou))), recorded, iou.tolist(), strict=True)
        for where, found, expected in pairs:
            same = math.isnan(expected) if found is None else math.isclose(found, expected, rel_tol=ROUNDING)
            if not same:
                raise UserError(path, f"{name}.{where} {found}", f"{expected} of its confusion matrix")
    except (KeyError, TypeError, ValueError) as error:
        found = f"{name}: {type(error).__name__} {error}"
        raise UserError(path, found, "a confusion matrix, IoU per class and their mean") from error
    return counts


def check_history(path: Path) -> None:
    """Raise UserError if history.csv is not the one that run.json beside it records."""
    record = path.with_name("run.json")
    recorded = read_fields(record, files=dict)["files"].get(path.name) if record.is_file() else None
    if recorded is not None and path.is_file() and (found := sha256(path)) != recorded:
        raise UserError(path, f"sha256 {found}", f"{recorded} of {record}")


def _miou(path: Path, evaluation: Any, checkpoint: str) -> float:
    try:
        miou = evaluation[checkpoint]["miou"]
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(path, f"no {checkpoint}.miou", "the evaluation of a run") from error
    if isinstance(miou, bool) or not isinstance(miou, int | float) or not 0 <= miou <= 100:
        raise UserError(path, f"{checkpoint}.miou = {str(miou)[:80]}", "a percentage from 0 to 100")
    return float(miou)


def command(suite: Suite, results: Path, runs: list[str]) -> str:
    """The shell command that trains and evaluates the runs again."""
    threads = max((suite.runs[run].recipe.threads for run in runs if run in suite.runs), default=1)
    targets = [str(results / "runs" / run / "evaluation.json") for run in runs]
    # --config takes all words up to the next option.
    options = ["--cores", str(threads), "--config", f"scale={suite.scale}", "--force"]
    return shlex.join(["snakemake", *options, *targets])
