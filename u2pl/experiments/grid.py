"""The grid: tables x columns -> cells -> runs. Equal settings give the equal run."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from u2pl.errors import UserError
from u2pl.experiments.params import merge, nearest, read_yaml, validate
from u2pl.experiments.schema import (
    DEFAULT_FIDELITY,
    Archive,
    Cell,
    CellName,
    Column,
    Dataset,
    Figure,
    Method,
    MethodSettings,
    Preset,
    Protocol,
    PublishedList,
    PublishedSource,
    Recipe,
    Row,
    RunSpec,
    Scale,
    Strict,
    Suite,
    Table,
)

# Names become folders, wildcards, words of a shell and parts of run ids, whose hyphens separate the parts.
NAME = re.compile("[A-Za-z0-9_]+")
FILE_NAME = re.compile("[A-Za-z0-9_][A-Za-z0-9_.+-]*")
STEM = re.compile("[A-Za-z0-9_][A-Za-z0-9_-]*")
TAKEN = {"datasets": ("archives", "lists", "splits", "upstream", "weights"), "splits": ("drawn",)}
KINDS = ("pascal", "cityscapes")  # of data sets


def scale_names(root: Path = Path()) -> list[str]:
    """The scales that `params/scales` holds."""
    return sorted(path.stem for path in (root / "params/scales").glob("*.yaml"))


def load_suite(scale: str, root: Path = Path()) -> Suite:
    """Read `params/` under `root` at a scale; raises UserError for anything that does not fit."""
    folder = root / "params"
    names = scale_names(root)
    if scale not in names:
        raise UserError(f"scale {scale!r}", "no such file in params/scales", nearest(scale, names))
    _check_name(STEM, scale, folder / "scales")
    scale_file = folder / "scales" / f"{scale}.yaml"
    params = validate(Scale, read_yaml(scale_file), scale_file)

    def typed(model: type[Strict], kind: str, overrides: dict[str, dict[str, Any]]) -> dict[str, Any]:
        path = folder / f"{kind}.yaml"
        base = read_yaml(path)
        for name in overrides:
            if name not in base:
                raise UserError(f"{scale_file}: {kind}.{name}", "an unknown key", nearest(name, list(base)))
        result = {}
        for name, value in base.items():
            _check_name(FILE_NAME if kind == "weights" else NAME, name, path, TAKEN.get(kind, ()))
            # The base file is read alone first, so that a mistake is blamed on the file it stands in.
            validate(model, value, path, (name,))
            result[name] = validate(model, merge(value, overrides.get(name, {})), scale_file, (kind, name))
        return result

    datasets: dict[str, Dataset] = typed(Dataset, "datasets", params.datasets)
    protocols: dict[str, Protocol] = typed(Protocol, "protocols", params.protocols)
    recipes: dict[str, Recipe] = typed(Recipe, "recipes", params.recipes)
    methods: dict[str, Method] = typed(Method, "methods", params.methods)
    presets: dict[str, Preset] = typed(Preset, "fidelity", params.fidelity)
    # Here, so that a mistake is blamed on its file and not on the table row that uses it.
    for name, method in methods.items():
        validate(MethodSettings, method.settings, folder / "methods.yaml", (name, "settings"))
    for name, preset in presets.items():
        for part in ("all", *KINDS):
            validate(MethodSettings, getattr(preset, part), folder / "fidelity.yaml", (name, part))
    for name, protocol in protocols.items():
        for known in (datasets, recipes):
            if protocol.dataset not in known:
                where = f"{folder / 'protocols.yaml'}: {name}.dataset"
                raise UserError(where, repr(protocol.dataset), nearest(protocol.dataset, list(known)))

    def place(kind: str, name: str, path: Sequence[str], *keys: str) -> str:
        """Where the value of the first key below a path comes from: the scale's file if it has one of the keys."""
        part: Any = getattr(params, kind, {}).get(name, {})
        for step in path:
            part = part.get(step, {}) if isinstance(part, Mapping) else {}
        for key in keys:
            if key in part:
                return f"{scale_file}: {'.'.join([kind, name, *path, key])}"
        return f"{folder / kind}.yaml: {'.'.join([name, *path, keys[0]])}"

    _check_datasets(datasets, protocols, place)
    _check_presets(presets, methods, place)
    suite = Suite(
        scale=scale,
        params=params,
        datasets=datasets,
        protocols=protocols,
        methods=methods,
        weights=typed(Archive, "weights", {}),
        published=typed(PublishedSource, "splits", params.splits),
        **_grid(folder, params, scale, datasets, protocols, recipes, methods, presets),
    )
    for source, published in suite.published.items():
        for name in set(published.lists) - set(protocols):
            where = f"{folder / 'splits.yaml'}: {source}.lists.{name}"
            raise UserError(where, "no such protocol", nearest(name, list(protocols)))
    _check_runs(suite, place)
    return suite.model_copy(update={"figures": _figures(folder, typed(Figure, "figures", params.figures), suite)})


Place = Callable[..., str]  # `place` of load_suite


def _check_name(pattern: re.Pattern[str], name: str, where: Path, taken: Iterable[str] = ()) -> None:
    if not pattern.fullmatch(name):
        raise UserError(f"{where}: {name[:80]!r}", "a name with other characters", f"one of {pattern.pattern}")
    if name in taken:
        raise UserError(f"{where}: {name}", "a name with a meaning of its own", "another name")


def _check_datasets(datasets: Mapping[str, Dataset], protocols: Mapping[str, Protocol], place: Place) -> None:
    """Lists are those of the data set's kind, archives share a folder, and protocols use lists that there are."""
    files: dict[str, str] = {}
    for name, dataset in datasets.items():
        known = ["train", "train_aug", "val"] if dataset.kind == "pascal" else ["train", "val"]
        if sorted(dataset.counts) != known:
            raise UserError(place("datasets", name, [], "counts"), ", ".join(dataset.counts)[:200], ", ".join(known))
        for key, archive in dataset.archives.items():
            where = place("datasets", name, ["archives", key], "file")
            if archive.file in files:
                raise UserError(where, f"{archive.file}, as {files[archive.file]}", "a file of its own")
            files[archive.file] = where
    for name, protocol in protocols.items():
        counts = datasets[protocol.dataset].counts
        for key in ("candidates", "universe"):
            if (value := getattr(protocol, key)) not in counts:
                raise UserError(
                    place("protocols", name, [], key), value, f"a list of {protocol.dataset}: {', '.join(counts)}"
                )
        if counts[protocol.candidates] > counts[protocol.universe]:
            raise UserError(place("protocols", name, [], "candidates"), protocol.candidates, "a part of the universe")


def _check_presets(presets: Mapping[str, Preset], methods: Mapping[str, Method], place: Place) -> None:
    """Each preset alone, and with each method's own settings, leaves ranks between its thresholds."""
    for name, preset in presets.items():
        for kind in KINDS:
            own = getattr(preset, kind)
            values = MethodSettings().model_dump() | preset.all | own
            part = kind if {"r_low", "r_high"} & own.keys() else "all"
            _check_ranks(place("fidelity", name, [part], "r_low", "r_high"), values)
            for method, params in methods.items():
                where = place("methods", method, ["settings"], "r_low", "r_high")
                _check_ranks(where, values | params.settings)


def _check_ranks(where: str, settings: Mapping[str, Any], n_classes: int | None = None) -> None:
    """Raise UserError unless a rank lies from `r_low` to below `r_high` (Eq. 14, 15).

    Without any the contrastive loss has no negatives, and what is called U2PL trains without it.
    """
    low, high = settings["r_low"], settings["r_high"]
    if low >= high:
        raise UserError(where, f"{low} with r_high = {high}", "r_low below r_high")
    if n_classes is not None and low >= n_classes:
        raise UserError(where, f"{low} with {n_classes} classes", f"at most {n_classes - 1}, the last rank")


def _check_runs(suite: Suite, place: Place) -> None:
    """Every run finds its images, its split lists and its encoder weights; the baseline names runs."""
    for key, archive in suite.weights.items():
        if archive.file != key:
            raise UserError(place("weights", key, [], "file"), archive.file, f"{key}, the file's name in weights/")
    weights = [f"weights/{key}" for key in suite.weights]
    for run in suite.runs.values():
        protocol = suite.protocols[run.protocol]
        if run.labelled > (there := run.dataset.counts[protocol.candidates]):
            where = place("protocols", run.protocol, ["fractions"], run.fraction)
            raise UserError(where, f"{run.labelled} labelled images", f"at most the {there} of {protocol.candidates}")
        published_list(suite, run.settings.split_source, run.protocol, run.labelled)
        if run.weights is not None and run.weights not in weights:
            where = place("recipes", run.dataset_name, ["network", "weights"], run.settings.backbone_stem)
            raise UserError(where, run.weights, nearest(run.weights, weights))
    for run_id in suite.params.baseline or []:
        if run_id not in suite.runs:
            where = f"params/scales/{suite.scale}.yaml: baseline"
            raise UserError(where, f"no run {run_id[:80]!r}", nearest(run_id, list(suite.runs)))


def _figures(folder: Path, declared: dict[str, Figure], suite: Suite) -> dict[str, Figure]:
    """The figures whose tables the scale has, and one that compares ours with the paper's for every table."""
    where = folder / "figures.yaml"
    known = [path.stem for path in (folder / "tables").glob("*.yaml")]
    figures = {}
    for name, figure in declared.items():
        for table in figure.tables:
            if table not in known:
                raise UserError(f"{where}: {name}", f"no table {table!r}", nearest(table, known))
        if not figure.tables <= set(suite.tables):
            continue
        found = [find_cell(suite, cell, f"{where}: {name}.cells.{title}") for title, cell in figure.cells.items()]
        if len(used := {suite.protocols[cell.protocol].dataset for cell in found}) > 1:
            raise UserError(f"{where}: {name}.cells", " and ".join(sorted(used)), "cells of one data set")
        if name.startswith("comparison_"):
            raise UserError(f"{where}: {name}", "the name of a figure that every table has", "another name")
        figures[name] = figure
    for name, shown in suite.tables.items():
        figures[f"comparison_{name}"] = Figure(kind="comparison", table=name, caption=shown.caption)
    return figures


def find_cell(suite: Suite, name: CellName, where: object) -> Cell:
    """The measured cell that `name` names. Raises UserError, blaming `where`, if there is none."""
    own = [cell for cell in suite.cells if cell.table == name.table and cell.runs]
    rows = [cell for cell in own if cell.row == name.row]
    if not rows:
        found = f"no measured row {name.row!r} in {name.table}"
        raise UserError(where, found, nearest(name.row, list(dict.fromkeys(cell.row for cell in own))))
    for cell in rows:
        if (cell.protocol, cell.fraction) == (name.protocol, name.fraction):
            return cell
    columns = ", ".join(f"{cell.protocol} {cell.fraction}" for cell in rows)
    raise UserError(where, f"no column {name.protocol} {name.fraction} in {name.table}", f"one of {columns}")


def figure_cells(suite: Suite, name: str) -> dict[str, Cell]:
    """The cells of a figure, by the names they have in it; those of a whole table by row and column."""
    figure = suite.figures[name]
    if figure.table is None:
        return {title: find_cell(suite, cell, name) for title, cell in figure.cells.items()}
    cells = [cell for cell in suite.cells if cell.table == figure.table]
    return {f"{cell.row}, {cell.protocol} {cell.column}": cell for cell in cells}


def published_list(suite: Suite, source: str, protocol: str, labelled: int) -> PublishedList | None:
    """The published lists with so many labelled images; None if the source is "drawn". UserError if there are none."""
    if source == "drawn":
        return None
    where, known = "params/splits.yaml", suite.published
    if source not in known:
        raise UserError(where, f"no source {source!r}", nearest(source, ["drawn", *known]))
    lists = known[source].lists.get(protocol, {})
    for fraction, count in suite.protocols[protocol].fractions.items():
        if count == labelled and fraction in lists:
            return lists[fraction]
    found = f"no list of {labelled} labelled images"
    raise UserError(f"{where}: {source}.lists.{protocol}", found, "one of " + ", ".join(lists or ["no fraction"]))


def _grid(
    folder: Path,
    params: Scale,
    scale: str,
    datasets: dict[str, Dataset],
    protocols: dict[str, Protocol],
    recipes: dict[str, Recipe],
    methods: dict[str, Method],
    presets: dict[str, Preset],
) -> dict[str, Any]:
    """Tables, their cells in reading order, and the distinct runs behind them."""
    tables: dict[str, Table] = {}
    runs: dict[str, RunSpec] = {}
    cells: list[Cell] = []
    known = {path.stem: path for path in sorted((folder / "tables").glob("*.yaml"))}
    for name in params.tables or known:
        if name not in known:
            raise UserError(f"{folder / 'scales' / scale}.yaml: tables", repr(name), nearest(name, list(known)))
        path = known[name]
        _check_name(STEM, name, path.parent)
        table = tables[path.stem] = validate(Table, read_yaml(path), path)
        for number, row in enumerate(table.rows):
            for column, paper in zip(table.columns, row.paper, strict=True):
                labelled = _labelled(column, path, protocols)
                dataset = protocols[column.protocol].dataset
                where = f"{path}: rows.{number}"
                reading, chosen, overrides, departures = _settings(row, where, datasets[dataset], methods, presets)
                trained = chosen.model_copy(update={"checkpoint_selection": "best"})
                reported = chosen.checkpoint_selection
                common: dict[str, Any] = {
                    "protocol": column.protocol,
                    "fraction": column.fraction,
                    "labelled": labelled,
                    "method": row.method or "",
                    "fidelity": reading,
                }
                specs = [
                    RunSpec(
                        **common,
                        scale=scale,
                        seed=seed,
                        dataset_name=dataset,
                        dataset=datasets[dataset],
                        recipe=recipes[dataset],
                        settings=trained,
                        # The checkpoint that is reported is no part of the training.
                        overrides={k: v for k, v in overrides.items() if k != "checkpoint_selection"},
                        departures={k: v for k, v in departures.items() if k != "checkpoint_selection"},
                    )
                    for seed in params.seeds
                    if row.method is not None
                ]
                runs.update({spec.id: spec for spec in specs})
                cells.append(
                    Cell(
                        **common,
                        table=path.stem,
                        row=row.title,
                        column=f"{column.fraction} ({labelled})",
                        source=row.source,
                        overrides=overrides,
                        checkpoint=reported,
                        paper=paper,
                        runs=[spec.id for spec in specs],
                    )
                )
    return {"tables": tables, "runs": runs, "cells": cells}


def _settings(
    row: Row, where: str, dataset: Dataset, methods: dict[str, Method], presets: dict[str, Preset]
) -> tuple[str, MethodSettings, dict[str, Any], dict[str, Any]]:
    """The row's settings, the shortest way to write them (a preset and what differs from it), and the departures.

    Settings that the method does not use keep the defaults. Departures are the paper preset's values, without what a
    scale changes in the methods, of the settings that differ from them.
    """
    if row.method is None:
        return row.fidelity, MethodSettings(), {}, {}
    for key, value, known in (("method", row.method, list(methods)), ("fidelity", row.fidelity, list(presets))):
        if value not in known:
            raise UserError(f"{where}.{key}", repr(value), nearest(value, known))
    path, _, place = where.partition(": ")
    method, kind = methods[row.method], dataset.kind
    default = MethodSettings().model_dump()

    def resolve(reading: str, overrides: dict[str, Any], key: tuple[str, ...]) -> MethodSettings:
        preset = presets[reading]
        value = {**preset.all, **getattr(preset, kind), **method.settings, **overrides}
        full = validate(MethodSettings, value, Path(path), key).model_dump()
        used = {k: v if MethodSettings.group(k) in method.groups else default[k] for k, v in full.items()}
        return MethodSettings(**used)

    # Typed first, compared after: 0.20 and the default 0.2 are one setting.
    chosen = resolve(row.fidelity, row.overrides, (place, "overrides"))
    if "contrast" in method.groups:
        _check_ranks(f"{where}.overrides.r_low", chosen.model_dump(), len(dataset.classes))
    ways = {}
    for reading in presets:
        base = resolve(reading, {}, (place,)).model_dump()
        ways[reading] = {key: value for key, value in chosen.model_dump().items() if value != base[key]}
    reading = min(presets, key=lambda name: (len(ways[name]), name != DEFAULT_FIDELITY))
    preset = presets[DEFAULT_FIDELITY]
    paper = MethodSettings(**{**preset.all, **getattr(preset, kind)}).model_dump()
    used = {key: value for key, value in chosen.model_dump().items() if MethodSettings.group(key) in method.groups}
    return reading, chosen, ways[reading], {key: paper[key] for key, value in used.items() if value != paper[key]}


def _labelled(column: Column, path: Path, protocols: dict[str, Protocol]) -> int:
    if column.protocol not in protocols:
        raise UserError(f"{path}: columns", repr(column.protocol), nearest(column.protocol, list(protocols)))
    fractions = protocols[column.protocol].fractions
    if column.fraction not in fractions:
        where = f"{path}: columns"
        raise UserError(where, f"{column.protocol} {column.fraction}", "one of " + ", ".join(fractions))
    return fractions[column.fraction]
