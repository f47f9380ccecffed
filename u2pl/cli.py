"""`u2pl <verb>`: what the workflow's rules call, one verb a rule."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from u2pl.errors import UserError
from u2pl.experiments import RunSpec, Suite, load_suite, published_list
from u2pl.experiments.params import nearest
from u2pl.files import write_json

# Heavy imports stand inside the verbs: listing runs must not wait for torch.

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
data = typer.Typer(no_args_is_help=True, help="Archives, prepared images and masks, split lists.")
app.add_typer(data, name="data")
splits = typer.Typer(no_args_is_help=True, help="What the split lists hold.")
app.add_typer(splits, name="splits")

Scale = Annotated[str, typer.Option(help="A file of params/scales, without its ending.")]
Source = Annotated[str, typer.Option(help="drawn, or a key of params/splits.yaml.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def _find(suite: Suite, run: str) -> RunSpec:
    if run not in suite.runs:
        raise UserError(f"run {run!r}", f"no such run at scale {suite.scale!r}", nearest(run, list(suite.runs)))
    return suite.runs[run]


def _dataset(suite: Suite, name: str) -> str:
    if name not in suite.datasets:
        raise UserError(
            f"data set {name!r}", "no such key in params/datasets.yaml", nearest(name, list(suite.datasets))
        )
    return name


def _protocol(suite: Suite, name: str) -> str:
    if name not in suite.protocols:
        raise UserError(f"protocol {name!r}", "no such protocol", nearest(name, list(suite.protocols)))
    return name


def _source(suite: Suite, name: str) -> str:
    if name not in suite.published:
        raise UserError(f"source {name!r}", "no such key in params/splits.yaml", nearest(name, list(suite.published)))
    return name


def _folders(spec: RunSpec) -> tuple[Path, Path, Path]:
    """Where a run's prepared data, split lists and results stand."""
    root = Path("data") / spec.scale
    return root / spec.dataset_name, root / "splits" / spec.split, Path("results") / spec.scale / "runs" / spec.id


@data.command()
def synthesize(dataset: str, scale: Scale = "demo") -> None:
    """Draw archives with upstream's names and layouts, as the scale's `synthetic` says."""
    from u2pl.data.synthesize import synthesize as run

    suite = load_suite(scale)
    drawn = suite.datasets[_dataset(suite, dataset)].synthetic
    if drawn is None:
        raise UserError(f"params/scales/{scale}.yaml: datasets.{dataset}.synthetic", "nothing", "seed, counts and size")
    target = Path("data") / scale / "upstream"
    kind = suite.datasets[dataset].kind
    run(kind, target, seed=drawn.seed, train=drawn.train, extra=drawn.extra, val=drawn.val, size=drawn.size)


@data.command()
def fetch(dataset: str, archive: str, scale: Scale = "demo") -> None:
    """Fetch one archive of a data set and verify its checksum; `weights` is the data set of encoder weights."""
    from u2pl.data.fetch import fetch as run

    suite = load_suite(scale)
    known = suite.weights if dataset == "weights" else suite.datasets[_dataset(suite, dataset)].archives
    if archive not in known:
        raise UserError(f"archive {archive!r}", f"no such archive of {dataset}", nearest(archive, list(known)))
    folder = Path("weights") if dataset == "weights" else Path("data") / scale / "archives"
    run(known[archive], folder / known[archive].file)


@data.command()
def prepare(dataset: str, scale: Scale = "demo", workers: int = 1) -> None:
    """Archives -> images, masks of train ids, and lists, under data/<scale>/<dataset>."""
    from u2pl.data.prepare import prepare as run

    suite = load_suite(scale)
    root = Path("data") / scale
    run(suite.datasets[_dataset(suite, dataset)], root / "archives", root / dataset, workers)


@data.command()
def synthesize_lists(source: str, protocol: str, scale: Scale = "demo") -> None:
    """Draw a mirror of the split lists that a source publishes for a protocol, of synthetic prepared data."""
    from u2pl.data.mirror import mirror

    suite = load_suite(scale)
    params, published = suite.protocols[_protocol(suite, protocol)], suite.published[_source(suite, source)]
    dataset = suite.datasets[params.dataset]
    if dataset.synthetic is None:
        raise UserError(f"params/scales/{scale}.yaml: datasets.{params.dataset}.synthetic", "nothing", "synthetic data")
    root = Path("data") / scale
    lists, target = published.lists.get(protocol, {}), root / "upstream/lists" / source
    mirror(source, protocol, lists, params, dataset.kind, prepared=root / params.dataset, target=target)


@data.command()
def fetch_list(source: str, path: str, scale: Scale = "demo") -> None:
    """Fetch one published split list, by its path in the source's repository, and verify its checksum."""
    from u2pl.data.fetch import fetch as run
    from u2pl.data.published import archive

    suite = load_suite(scale)
    published = suite.published[_source(suite, source)]
    known = [file for name in published.lists for file in published.paths(name)]
    if path not in known:
        raise UserError(f"list {path!r}", f"no such list of {source}", nearest(path, known))
    run(archive(published, path), Path("data") / scale / "lists" / source / path)


@data.command()
def split(protocol: str, labelled: int, source: Source = "drawn", scale: Scale = "demo") -> None:
    """Draw the labelled and unlabelled lists of a protocol, or take those that a source published."""
    from u2pl.data.published import install
    from u2pl.data.splits import draw

    suite = load_suite(scale)
    params = suite.protocols[_protocol(suite, protocol)]
    if labelled not in params.fractions.values():
        raise UserError(f"{protocol}: {labelled} labelled images", "no such fraction", params.fractions)
    root = Path("data") / scale
    prepared, target = root / params.dataset, root / "splits" / protocol / source / str(labelled)
    files = published_list(suite, source, protocol, labelled)
    if files is None:
        draw(params, labelled, prepared, target, params.seed)
    else:
        folder, published = root / "lists" / source, suite.published[source]
        install(source, published, files, params, labelled, folder=folder, prepared=prepared, target=target)


@splits.command()
def audit(
    scale: Scale = "demo",
    protocol: Annotated[str | None, typer.Option(help="Only this protocol.")] = None,
    source: Annotated[list[str] | None, typer.Option(help="Only this source; may be repeated.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the numbers to this CSV file.")] = None,
    classes: Annotated[bool, typer.Option(help="Read the labelled masks for class frequencies.")] = True,
) -> None:
    """Sizes, overlaps, share of finely annotated images and class frequencies of the splits that have been made."""
    from rich.console import Console

    from u2pl.data.audit import audit_splits, tables, write_csv

    suite = load_suite(scale)
    if protocol is not None:
        _protocol(suite, protocol)
    for name in source or []:
        if name != "drawn":
            _source(suite, name)
    audits = audit_splits(Path("data") / scale, protocol, source, classes=classes)
    if csv is not None:
        write_csv(csv, audits)
    for part in tables(audits):
        Console().print(part)


@app.command()
def train(run: str, scale: Scale = "demo", device: Device = "auto") -> None:
    """Train one run; a stopped one goes on from its last state."""
    from u2pl.data.splits import check
    from u2pl.engine.train import train as start

    spec = _find(load_suite(scale), run)
    prepared, lists, out = _folders(spec)
    check(lists, prepared)  # the lists may have been edited since they were drawn
    weights = spec.weights
    state = Path("results") / scale / "state" / run
    start(
        spec,
        prepared=prepared,
        split=lists,
        weights=Path(weights) if weights else None,
        out=out,
        state=state,
        device=device,
    )


@app.command()
def evaluate(runs: list[str], scale: Scale = "demo", device: Device = "auto") -> None:
    """Evaluate the weights of finished runs again, last and best, on the validation list."""
    from u2pl.engine.evaluate import evaluate_run

    suite = load_suite(scale)
    for spec in [_find(suite, run) for run in runs]:
        prepared, lists, out = _folders(spec)
        evaluate_run(spec, prepared=prepared, split=lists, run_dir=out, device=device)


@app.command()
def cells(scale: Scale = "demo") -> None:
    """Gather every cell of every table into results/<scale>/cells.csv."""
    from u2pl.report.cells import write_cells

    results = Path("results") / scale
    write_cells(load_suite(scale), results, results / "cells.csv")


@app.command()
def table(name: str, scale: Scale = "demo") -> None:
    """Write one table as CSV, Markdown and LaTeX, and its own cells."""
    from u2pl.report.cells import write_cells
    from u2pl.report.tables import write_table

    suite = load_suite(scale)
    if name not in suite.tables:
        raise UserError(f"table {name!r}", "no such file in params/tables", nearest(name, list(suite.tables)))
    results = Path("results") / scale
    # Only this table's runs are looked at, so that one table can be made without the others.
    own = suite.model_copy(update={"cells": [cell for cell in suite.cells if cell.table == name]})
    source = results / "cells" / f"{name}.csv"
    write_cells(own, results, source)
    write_table(source, suite.tables[name], name, suite.params, results / "tables" / name)


@app.command()
def show(path: Path) -> None:
    """Print a Markdown table on the terminal."""
    from rich.console import Console
    from rich.markdown import Markdown

    try:
        Console().print(Markdown(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(path, error.strerror, "a table that has been made") from error


@app.command()
def runs(scale: Scale = "demo") -> None:
    """List the runs of a scale, one id a line."""
    for run in load_suite(scale).runs:
        print(run)


@app.command()
def plan(
    tables: Annotated[list[str] | None, typer.Argument(help="Only these tables.")] = None, scale: Scale = "demo"
) -> None:
    """What the tables of a scale take, before anything is submitted: trainings, hours, disk; and what is done."""
    from rich.console import Console

    from u2pl.experiments import plan as module

    found = module.plan(load_suite(scale), tables or [], Path("data") / scale, Path("results") / scale)
    for part in module.tables(found):
        Console().print(part)


@app.command()
def schema(target: Path = Path("workflow/schemas")) -> None:
    """Export the JSON schemas of the Snakemake config and of the files in params/."""
    from u2pl.experiments import schema as models

    kinds = (models.Config, models.Dataset, models.Protocol, models.Recipe, models.Method, models.MethodSettings)
    more = (models.Preset, models.PublishedSource, models.Archive, models.Scale, models.Table)
    for model in (*kinds, *more):
        dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
        write_json(target / f"{model.__name__.lower()}.schema.json", dialect | model.model_json_schema())


def main() -> None:
    """Run the command line; what a user can cause ends in one line and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"u2pl: {error}", file=sys.stderr)
        sys.exit(2)
