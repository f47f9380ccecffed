"""`u2pl figure`: what the engine predicts, and what the report draws of it."""

from pathlib import Path

from u2pl.cli.data import restored
from u2pl.data.lists import read_ids
from u2pl.data.splits.draw import check
from u2pl.experiments import figure_cells
from u2pl.experiments.read import pick
from u2pl.experiments.settings import unreliable_share
from u2pl.experiments.specs import recorded
from u2pl.experiments.suite import Suite
from u2pl.folders import data_of, results_of
from u2pl.report import figures


def draw(suite: Suite, name: str, device: str) -> None:
    """Write results/<scale>/figures/<name>.pdf and .png.

    Raises UserError for an unknown name, and where a file is missing or malformed.
    """
    params, results = pick(suite.figures, name, f"figure at scale {suite.scale!r}"), results_of(suite.scale)
    stem = results.figure(name)
    with recorded(suite, "figure", name):
        if params.table is None:
            _draw_predicted(suite, name, stem, device)
        else:
            figures.draw_numbers(suite, name, stem, results.folder, results.cells(params.table))


def _draw_predicted(suite: Suite, name: str, stem: Path, device: str) -> None:
    """Draw a figure that needs the networks: those of each cell's first seed."""
    from u2pl.engine import predict  # here: the figures of numbers alone need not wait for torch

    params, cells = suite.figures[name], figure_cells(suite, name)
    specs = {title: suite.runs[cell.runs[0]] for title, cell in cells.items()}
    spec = next(iter(specs.values()))
    restored(suite, spec.dataset_name, spec.recipe.threads)
    data, runs = data_of(suite.scale), results_of(suite.scale).runs
    prepared, lists = data.prepared(spec.dataset_name).folder, data.split(spec.split)
    check(lists.folder, prepared)
    classes = spec.dataset.classes
    if params.kind == "predictions":
        chosen = predict.richest(prepared, read_ids(lists.list("val")), spec.dataset, params.images)
        seen = {
            title: predict.predict(run, prepared, chosen, runs / run.id, cells[title].checkpoint, device)
            for title, run in specs.items()
        }
        first = next(iter(seen.values()))
        labels = {title: [p.probs.argmax(0) for p in predictions] for title, predictions in seen.items()}
        figures.draw_predictions(stem, classes, [p.image for p in first], [p.mask for p in first], labels)
        return
    unlabelled = read_ids(lists.list("unlabeled"))
    if params.kind == "classes":
        counts = predict.reliability(spec, prepared, unlabelled, runs / spec.id, device)
        figures.draw_classes(stem, classes, counts.iou, counts.reliable, counts.unreliable)
        return
    chosen = predict.richest(prepared, unlabelled, spec.dataset, 1)
    (prediction,) = predict.predict(spec, prepared, chosen, runs / spec.id, "last", device)
    figures.draw_entropy(stem, classes, prediction.probs, unreliable_share(spec.settings), spec.dataset.ignore_label)
