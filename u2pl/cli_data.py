"""`u2pl data <verb>` and `u2pl splits <verb>`: from archives to split lists."""

from pathlib import Path
from typing import Annotated

import typer

from u2pl.errors import UserError
from u2pl.experiments import Suite, load_suite, published_list
from u2pl.experiments.params import nearest
from u2pl.experiments.specs import recorded

data = typer.Typer(no_args_is_help=True, help="Archives, prepared images and masks, split lists.")
splits = typer.Typer(no_args_is_help=True, help="What the split lists hold.")

Scale = Annotated[str, typer.Option(help="A file of params/scales, without its ending.")]
Source = Annotated[str, typer.Option(help="drawn, or a key of params/splits.yaml.")]


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


def restored(suite: Suite, dataset: str, workers: int = 1) -> None:
    """Make sure that the prepared files of a data set are here and sound: `dvc pull` brings only their manifest."""
    from u2pl.data.prepare import restore

    root = Path("data") / suite.scale
    restore(suite.datasets[dataset], root / "archives", root / dataset, workers)


@data.command()
def synthesize(dataset: str, scale: Scale = "demo") -> None:
    """Draw archives with upstream's names and layouts, as the scale's `synthetic` says."""
    from u2pl.data.synthesize import synthesize as run

    suite = load_suite(scale)
    drawn = suite.datasets[_dataset(suite, dataset)].synthetic
    if drawn is None:
        raise UserError(f"params/scales/{scale}.yaml: datasets.{dataset}.synthetic", "nothing", "seed, counts and size")
    target = Path("data") / scale / "upstream"
    with recorded(suite, "synthesize", dataset):
        run(suite.datasets[dataset].kind, target, **drawn.model_dump())


@data.command()
def fetch(dataset: str, archive: str, scale: Scale = "demo") -> None:
    """Fetch one archive of a data set and verify its checksum; `weights` is the data set of encoder weights."""
    from u2pl.data.fetch import fetch as run

    suite = load_suite(scale)
    known = suite.weights if dataset == "weights" else suite.datasets[_dataset(suite, dataset)].archives
    if archive not in known:
        raise UserError(f"archive {archive!r}", f"no such archive of {dataset}", nearest(archive, list(known)))
    folder = Path("weights") if dataset == "weights" else Path("data") / scale / "archives"
    job = ("weights", archive) if dataset == "weights" else ("fetch", dataset, archive)
    with recorded(suite, *job):
        run(known[archive], folder / known[archive].file)


@data.command()
def prepare(dataset: str, scale: Scale = "demo", workers: int = 1) -> None:
    """Archives -> images, masks of train ids, and lists, under data/<scale>/<dataset>."""
    from u2pl.data.prepare import prepare as run

    suite = load_suite(scale)
    root = Path("data") / scale
    _dataset(suite, dataset)
    with recorded(suite, "prepare", dataset):
        run(suite.datasets[dataset], root / "archives", root / dataset, workers)


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
    restored(suite, params.dataset)
    lists, target = published.lists.get(protocol, {}), root / "upstream/lists" / source
    with recorded(suite, "mirror", source, protocol):
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
    with recorded(suite, "list", source, path):
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
    restored(suite, params.dataset)
    prepared, target = root / params.dataset, root / "splits" / protocol / source / str(labelled)
    files = published_list(suite, source, protocol, labelled)
    with recorded(suite, "split", protocol, source, str(labelled)):
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
    for name in suite.datasets:
        if classes and (Path("data") / scale / name / "masks").is_dir():
            restored(suite, name)
    audits = audit_splits(Path("data") / scale, protocol, source, classes=classes)
    if csv is not None:
        write_csv(csv, audits)
    for part in tables(audits):
        Console().print(part)
