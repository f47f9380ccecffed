"""`u2pl data <verb>` and `u2pl splits <verb>`: from archives to split lists."""

from pathlib import Path
from typing import Annotated

import typer

from u2pl.errors import UserError
from u2pl.experiments import Suite, load_suite, published_list
from u2pl.experiments.read import pick
from u2pl.experiments.schema import Dataset, Protocol, PublishedSource
from u2pl.experiments.specs import recorded
from u2pl.folders import WEIGHTS, Data, data_of, split_name

data = typer.Typer(no_args_is_help=True, help="Archives, prepared images and masks, split lists.")
splits = typer.Typer(no_args_is_help=True, help="What the split lists hold.")

Scale = Annotated[str, typer.Option(help="A file of params/scales, without its ending.")]
Source = Annotated[str, typer.Option(help="drawn, or a key of params/splits.yaml.")]
Seed = Annotated[int | None, typer.Option(help="Of the runs that lists are drawn for; by default the scale's first.")]


def _dataset(suite: Suite, name: str) -> Dataset:
    return pick(suite.datasets, name, "data set of params/datasets.yaml")


def _protocol(suite: Suite, name: str) -> Protocol:
    return pick(suite.protocols, name, "protocol of params/protocols.yaml")


def _source(suite: Suite, name: str) -> PublishedSource:
    return pick(suite.published, name, "source of params/splits.yaml")


def restored(suite: Suite, dataset: str, workers: int = 1) -> None:
    """Make sure that the prepared files of a data set are here and sound: `dvc pull` brings only their manifest."""
    from u2pl.data.prepare import restore

    root = data_of(suite.scale)
    restore(suite.datasets[dataset], root.archives, root.prepared(dataset).folder, workers)


@data.command()
def synthesize(dataset: str, scale: Scale = "demo") -> None:
    """Draw archives with upstream's names and layouts, as the scale's `synthetic` says."""
    from u2pl.data.synthetic.archives import synthesize as run

    suite = load_suite(scale)
    drawn = _dataset(suite, dataset).synthetic
    if drawn is None:
        raise UserError(f"params/scales/{scale}.yaml: datasets.{dataset}.synthetic", "nothing", "seed, counts and size")
    with recorded(suite, "synthesize", dataset):
        run(suite.datasets[dataset].kind, data_of(scale).upstream, **drawn.model_dump())


@data.command()
def fetch(dataset: str, archive: str, scale: Scale = "demo") -> None:
    """Fetch one archive of a data set and verify its checksum; `weights` is the data set of encoder weights."""
    from u2pl.data.sources.fetch import fetch as run

    suite = load_suite(scale)
    known = suite.weights if dataset == "weights" else _dataset(suite, dataset).archives
    wanted = pick(known, archive, f"archive of {dataset}")
    folder = WEIGHTS if dataset == "weights" else data_of(scale).archives
    job = ("weights", archive) if dataset == "weights" else ("fetch", dataset, archive)
    with recorded(suite, *job):
        run(wanted, folder / wanted.file)


@data.command()
def prepare(dataset: str, scale: Scale = "demo", workers: int = 1) -> None:
    """Archives -> images, masks of train ids, and lists, under data/<scale>/<dataset>."""
    from u2pl.data.prepare import prepare as run

    suite = load_suite(scale)
    root, params = data_of(scale), _dataset(suite, dataset)
    with recorded(suite, "prepare", dataset):
        run(params, root.archives, root.prepared(dataset).folder, workers)


@data.command()
def synthesize_lists(source: str, protocol: str, scale: Scale = "demo") -> None:
    """Draw a mirror of the split lists that a source publishes for a protocol, of synthetic prepared data."""
    from u2pl.data.synthetic.lists import mirror

    suite = load_suite(scale)
    params, published = _protocol(suite, protocol), _source(suite, source)
    dataset = suite.datasets[params.dataset]
    if dataset.synthetic is None:
        raise UserError(f"params/scales/{scale}.yaml: datasets.{params.dataset}.synthetic", "nothing", "synthetic data")
    root = data_of(scale)
    restored(suite, params.dataset)
    lists, prepared = published.lists.get(protocol, {}), root.prepared(params.dataset).folder
    target = Data(root.upstream).lists(source)
    with recorded(suite, "mirror", source, protocol):
        mirror(source, protocol, lists, params, dataset.kind, prepared=prepared, target=target)


@data.command()
def fetch_list(source: str, path: str, scale: Scale = "demo") -> None:
    """Fetch one published split list, by its path in the source's repository, and verify its checksum."""
    from u2pl.data.sources.fetch import fetch as run
    from u2pl.data.splits.published import archive

    suite = load_suite(scale)
    published = _source(suite, source)
    known = {file: file for name in published.lists for file in published.paths(name)}
    path = pick(known, path, f"list of {source}")
    with recorded(suite, "list", source, path):
        run(archive(published, path), data_of(scale).lists(source) / path)


@data.command()
def split(protocol: str, labelled: int, source: Source = "drawn", seed: Seed = None, scale: Scale = "demo") -> None:
    """Draw the labelled and unlabelled lists of a protocol for a seed, or take those that a source published."""
    from u2pl.data.splits.draw import draw
    from u2pl.data.splits.published import install

    suite = load_suite(scale)
    params = _protocol(suite, protocol)
    if labelled not in params.fractions.values():
        raise UserError(f"{protocol}: {labelled} labelled images", "no such fraction", params.fractions)
    files = published_list(suite, source, protocol, labelled)
    if files is not None and seed is not None:
        raise UserError("--seed", seed, f"no seed: the lists of {source} serve all of them")
    drawn_for = suite.params.seeds[0] if seed is None else seed
    if drawn_for not in suite.seeds:
        raise UserError("--seed", seed, f"one of the scale's {', '.join(map(str, suite.seeds))}")
    root, name = data_of(scale), split_name(protocol, source, labelled, drawn_for)
    restored(suite, params.dataset)
    prepared, target = root.prepared(params.dataset).folder, root.split(name).folder
    with recorded(suite, "split", name):
        if files is None:
            draw(params, labelled, prepared, target, drawn_for, stratified=suite.params.synthetic)
        else:
            folder, published = root.lists(source), suite.published[source]
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

    from u2pl.data.splits.audit import audit_splits, tables, write_csv

    suite = load_suite(scale)
    if protocol is not None:
        _protocol(suite, protocol)
    for name in source or []:
        if name != "drawn":
            _source(suite, name)
    for name in suite.datasets:
        if classes and data_of(scale).prepared(name).masks.is_dir():
            restored(suite, name)
    audits = audit_splits(data_of(scale).folder, protocol, source, classes=classes)
    if csv is not None:
        write_csv(csv, audits)
    for part in tables(audits):
        Console().print(part)
