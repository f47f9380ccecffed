"""The long table of classes: per cell and class, an interval over seeds and, beside it, one over validation images."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from u2pl.errors import UserError
from u2pl.experiments.records import Scores
from u2pl.experiments.suite import Suite
from u2pl.files import atomic_path
from u2pl.folders import Results
from u2pl.report.images import Bootstrap, bootstrap, read_images
from u2pl.report.runs import Run, read_run
from u2pl.report.statistics import Sample

MEAN = "mIoU"  # in place of a class name, without an index: the mean over the classes that occur
STATISTICS = [
    "index",
    "class",
    "n",
    "mean",
    "std",
    "low",
    "high",
    "images",
    "image_iou",
    "image_low",
    "image_high",
    "image_run",
]
CELL = ["table", "row", "column", "fraction", "protocol", "checkpoint"]
COLUMNS = [*CELL, *STATISTICS]
NUMBERS = ["mean", "std", "low", "high", "image_iou", "image_low", "image_high"]


class Classes:
    """Statistics per class of a scale's runs. Cells share runs, so each is read and resampled once."""

    def __init__(self, suite: Suite, results: Path) -> None:
        self._suite, self._results = suite, results
        self._runs: dict[str, Run] = {}
        self._bootstraps: dict[tuple[str, str], Bootstrap | None] = {}

    def of(self, runs: Sequence[str], checkpoint: str) -> list[dict[str, Any]]:
        """The columns `STATISTICS` for the mean over classes and then for each class; nothing without runs.

        Over seeds are `n` (of the runs, in whose scores the class occurs), `mean`, `std`, `low` and `high` as in
        cells.csv. Over images are `image_low` and `image_high`: a bootstrap of the first run, `image_run`, whose IoU is
        `image_iou`, over its `images`, which are 0 where its matrices per image were not kept. NaN for what is unknown.

        Raises UserError as `read_run` and `read_images` do, or if runs are not of the same classes.
        """
        if not runs:
            return []
        read = [self._run(run) for run in runs]
        names = [label.name for label in read[0].record.spec.dataset.classes]
        scores = [run.evaluation.checkpoints[checkpoint] for run in read]
        for run, found in zip(runs, scores, strict=True):
            if len(found.iou) != (expected := len(names or scores[0].iou)):
                path = Results(self._results).run(run).evaluation
                raise UserError(path, f"{len(found.iou)} IoUs", f"{expected} classes")
        by_class = [_iou(found) for found in scores]
        over_images = self._bootstrap(runs[0], checkpoint)
        common = {"images": over_images.images if over_images else 0, "image_run": runs[0]}
        rows = []
        for index in range(-1, len(scores[0].iou)):
            values = [s.miou if index < 0 else iou[index] for s, iou in zip(scores, by_class, strict=True)]
            sample = Sample.of([value for value in values if value is not None])
            low, high = sample.interval
            ends = [math.nan] * 2
            if over_images:
                ends = (over_images.miou if index < 0 else over_images.iou[index]).tolist()
            row = {"index": "" if index < 0 else index, "n": sample.n, "mean": sample.mean, "std": sample.std}
            row |= {"class": MEAN if index < 0 else names[index] if names else f"class {index}"}
            row |= {"low": low, "high": high, "image_iou": math.nan if values[0] is None else values[0]}
            rows.append(row | {"image_low": ends[0], "image_high": ends[1]} | common)
        return rows

    def _run(self, run: str) -> Run:
        if run not in self._runs:
            self._runs[run] = read_run(self._suite, self._results, run)
        return self._runs[run]

    def _bootstrap(self, run: str, checkpoint: str) -> Bootstrap | None:
        key = run, checkpoint
        if key not in self._bootstraps:
            images = read_images(Results(self._results).run(run), self._run(run))
            self._bootstraps[key] = bootstrap(images.counts[checkpoint]) if images else None
        return self._bootstraps[key]


def _iou(scores: Scores) -> list[float | None]:
    """IoU in percent, None for a class that occurs nowhere; of the matrix: recorded digits may be off by rounding."""
    counts = np.array(scores.confusion, dtype=np.int64)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    pairs = zip(counts.diagonal().tolist(), union.tolist(), strict=True)
    return [100 * hits / size if size else None for hits, size in pairs]


def collect_classes(suite: Suite, results: Path) -> pd.DataFrame:
    """One row per trained cell of `suite` and class, in the suite's order, with the columns `COLUMNS`.

    `Classes.of` and docs/results.md explain them. Raises UserError if a run is not finished or its files do not fit.
    """
    classes = Classes(suite, results)
    rows = [
        cell.model_dump(include=set(CELL)) | row
        for cell in suite.cells
        for row in classes.of(cell.runs, cell.checkpoint)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def write_classes(suite: Suite, results: Path, target: Path) -> None:
    """Write `collect_classes(suite, results)` to the CSV file `target`, atomically."""
    frame = collect_classes(suite, results)
    with atomic_path(target) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")


def read_classes(path: Path) -> pd.DataFrame:
    """Read a `classes.csv` back; raises UserError if it is missing, lacks a column or has text for a number."""
    try:
        # Only numbers may be missing: a class called "None" is a name.
        classes = pd.read_csv(path, keep_default_na=False, na_values={name: [""] for name in NUMBERS})
    except FileNotFoundError as error:
        raise UserError(path, "no file", "the intervals per class, which `u2pl cells` writes") from error
    except (OSError, ValueError) as error:
        raise UserError(path, error, "a CSV file of classes") from error
    if missing := [name for name in COLUMNS if name not in classes]:
        raise UserError(path, f"no column {', '.join(missing)}", f"the columns {', '.join(COLUMNS)}")
    try:
        types = {**dict.fromkeys(NUMBERS, float), "n": int, "images": int, "row": str, "fraction": str}
        classes = classes.astype(types)
    except ValueError as error:
        raise UserError(path, error, f"numbers in the columns n, images, {', '.join(NUMBERS)}") from error
    if np.isinf(classes[NUMBERS]).any(axis=None):
        raise UserError(path, "an infinite number", f"finite numbers in the columns {', '.join(NUMBERS)}")
    return classes
