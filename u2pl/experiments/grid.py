"""The grid: tables x columns -> cells -> runs. Equal settings give the equal run."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from u2pl.errors import UserError
from u2pl.experiments.checks import (
    FILE_NAME,
    NAME,
    STEM,
    TAKEN,
    Files,
    check_datasets,
    check_name,
    check_ranks,
    check_runs,
    check_settings,
    settings_of,
)
from u2pl.experiments.read import merge, nearest, pick, read_yaml, validate
from u2pl.experiments.schema import (
    DEFAULT_FIDELITY,
    Archive,
    CellName,
    Column,
    Dataset,
    Figure,
    Method,
    Preset,
    Protocol,
    PublishedList,
    PublishedSource,
    Recipe,
    Row,
    Scale,
    Strict,
    Table,
)
from u2pl.experiments.settings import SETTINGS, Training
from u2pl.experiments.suite import Cell, RunSpec, Suite
from u2pl.experiments.synthetic import drawn_dataset, drawn_lists, drawn_preset


def scale_names(root: Path = Path()) -> list[str]:
    """The scales that `params/scales` holds."""
    return sorted(path.stem for path in (root / "params/scales").glob("*.yaml"))


def load_suite(scale: str, root: Path = Path()) -> Suite:
    """Read `params/` under `root` at a scale; raises UserError for anything that does not fit."""
    folder = root / "params"
    names = scale_names(root)
    if scale not in names:
        raise UserError(f"scale {scale!r}", "no such file in params/scales", nearest(scale, names))
    check_name(STEM, scale, folder / "scales")
    scale_file = folder / "scales" / f"{scale}.yaml"
    params = validate(Scale, read_yaml(scale_file), scale_file)

    def typed(
        model: type[Strict], kind: str, overrides: dict[str, dict[str, Any]], derived: Callable[..., Any] | None = None
    ) -> dict[str, Any]:
        path = folder / f"{kind}.yaml"
        base = read_yaml(path)
        for name in overrides:
            if name not in base:
                raise UserError(f"{scale_file}: {kind}.{name}", "an unknown key", nearest(name, base))
        result = {}
        for name, value in base.items():
            check_name(FILE_NAME if kind == "weights" else NAME, name, path, TAKEN.get(kind, ()))
            # The base file is read alone first, so that a mistake is blamed on the file it stands in.
            alone = validate(model, value, path, (name,))
            if derived is not None:
                value = merge(value, derived(scale, params, name, alone, scale_file))
            result[name] = validate(model, merge(value, overrides.get(name, {})), scale_file, (kind, name))
        return result

    datasets: dict[str, Dataset] = typed(Dataset, "datasets", params.datasets, drawn_dataset)
    protocols: dict[str, Protocol] = typed(Protocol, "protocols", params.protocols)
    recipes: dict[str, Recipe] = typed(Recipe, "recipes", params.recipes)
    methods: dict[str, Method] = typed(Method, "methods", params.methods)
    presets: dict[str, Preset] = typed(Preset, "fidelity", params.fidelity, drawn_preset)
    files = Files(folder, scale_file, params)
    check_settings(presets, methods, files)
    for name, protocol in protocols.items():
        where = f"{folder / 'protocols.yaml'}: {name}.dataset"
        pick(datasets, protocol.dataset, where)
        pick(recipes, protocol.dataset, where)

    check_datasets(datasets, protocols, files)
    suite = Suite(
        scale=scale,
        params=params,
        datasets=datasets,
        protocols=protocols,
        methods=methods,
        weights=typed(Archive, "weights", {}),
        published=typed(PublishedSource, "splits", params.splits, drawn_lists),
        **_grid(folder, params, scale, datasets, protocols, recipes, methods, presets),
    )
    for source, published in suite.published.items():
        for name in set(published.lists) - set(protocols):
            where = f"{folder / 'splits.yaml'}: {source}.lists.{name}"
            raise UserError(where, "no such protocol", nearest(name, list(protocols)))
    for run in suite.runs.values():
        published_list(suite, run.settings.split_source, run.protocol, run.labelled)
    check_runs(suite, files)
    return suite.model_copy(update={"figures": _figures(folder, typed(Figure, "figures", params.figures), suite)})


def _figures(folder: Path, declared: dict[str, Figure], suite: Suite) -> dict[str, Figure]:
    """The figures whose tables the scale has, and one that compares ours with the paper's for every table."""
    where = folder / "figures.yaml"
    known = {path.stem: path for path in (folder / "tables").glob("*.yaml")}
    figures = {}
    for name, figure in declared.items():
        for table in figure.tables:
            pick(known, table, f"{where}: {name}")
        if not figure.tables <= set(suite.tables):
            continue
        for title in [*figure.against, *figure.against.values()]:
            pick({row.title: row for row in suite.tables[figure.table or ""].rows}, title, f"{where}: {name}.against")
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
    where = "params/splits.yaml"
    lists = pick(suite.published, source, where).lists.get(protocol, {})
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
        path = pick(known, name, f"{folder / 'scales' / scale}.yaml: tables")
        check_name(STEM, name, path.parent)
        table = validate(Table, read_yaml(path), path)
        if table.on_request and params.tables is None:
            continue
        tables[path.stem] = table
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
                    for seed in _seeds(params.seeds, row.seed_factor)
                    if row.method is not None
                ]
                runs.update({spec.id: spec for spec in specs})
                cells.append(
                    Cell(
                        **common,
                        table=path.stem,
                        row=row.title,
                        column=f"{column.fraction} ({labelled})",
                        source="quoted" if row.method is None else methods[row.method].source,
                        overrides=overrides,
                        checkpoint=reported,
                        paper=paper,
                        copied_from=row.copied_from,
                        runs=[spec.id for spec in specs],
                    )
                )
    return {"tables": tables, "runs": runs, "cells": cells}


def _seeds(seeds: list[int], factor: int) -> list[int]:
    """The scale's seeds first, as rows are compared seed by seed; then the smallest numbers that are none of them."""
    others = (number for number in itertools.count() if number not in seeds)
    return [*seeds, *itertools.islice(others, (factor - 1) * len(seeds))]


def _settings(
    row: Row, where: str, dataset: Dataset, methods: dict[str, Method], presets: dict[str, Preset]
) -> tuple[str, Training, dict[str, Any], dict[str, Any]]:
    """The row's settings, the shortest way to write them (a preset and what differs from it), and the departures.

    Departures are the paper preset's values, without what a scale changes in the methods, of the settings that differ
    from them.
    """
    if row.method is None:
        return row.fidelity, Training(), {}, {}
    pick(presets, row.fidelity, f"{where}.fidelity")
    own = pick(methods, row.method, f"{where}.method").settings
    path, _, place = where.partition(": ")
    kind = SETTINGS[row.method]
    base = {name: kind(**preset.of(kind, dataset.kind) | own) for name, preset in presets.items()}
    # Typed first, compared after: 0.20 and the default 0.2 are one setting.
    typed = settings_of(row.method, row.overrides, Path(path), (place, "overrides"))
    chosen = base[row.fidelity].model_copy(update={key: getattr(typed, key) for key in row.overrides})
    check_ranks(f"{where}.overrides.r_low", chosen, len(dataset.classes))
    ways = {name: _changed(chosen, settings) for name, settings in base.items()}
    reading = min(presets, key=lambda name: (len(ways[name]), name != DEFAULT_FIDELITY))
    paper = kind(**presets[DEFAULT_FIDELITY].of(kind, dataset.kind))
    return reading, chosen, ways[reading], _changed(paper, chosen)


def _changed(settings: Training, base: Training) -> dict[str, Any]:
    """What differs from `base`, by name."""
    return {key: value for key, value in settings.model_dump().items() if value != getattr(base, key)}


def _labelled(column: Column, path: Path, protocols: dict[str, Protocol]) -> int:
    fractions = pick(protocols, column.protocol, f"{path}: columns").fractions
    if column.fraction not in fractions:
        where = f"{path}: columns"
        raise UserError(where, f"{column.protocol} {column.fraction}", "one of " + ", ".join(fractions))
    return fractions[column.fraction]
