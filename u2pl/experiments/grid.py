"""The grid: tables x columns -> cells -> runs. Equal settings give the equal run."""

from pathlib import Path
from typing import Any

from u2pl.errors import UserError
from u2pl.experiments.params import merge, nearest, read_yaml, validate
from u2pl.experiments.schema import (
    Archive,
    Cell,
    Column,
    Dataset,
    Method,
    MethodSettings,
    Protocol,
    Recipe,
    Row,
    RunSpec,
    Scale,
    Strict,
    Suite,
    Table,
)


def scale_names(root: Path = Path()) -> list[str]:
    """The scales that `params/scales` holds."""
    return sorted(path.stem for path in (root / "params/scales").glob("*.yaml"))


def load_suite(scale: str, root: Path = Path()) -> Suite:
    """Read `params/` under `root` at a scale; raises UserError for anything that does not fit."""
    folder = root / "params"
    names = scale_names(root)
    if scale not in names:
        raise UserError(f"scale {scale!r}", "no such file in params/scales", nearest(scale, names))
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
            # The base file is read alone first, so that a mistake is blamed on the file it stands in.
            validate(model, value, path, (name,))
            result[name] = validate(model, merge(value, overrides.get(name, {})), scale_file, (kind, name))
        return result

    datasets: dict[str, Dataset] = typed(Dataset, "datasets", params.datasets)
    protocols: dict[str, Protocol] = typed(Protocol, "protocols", params.protocols)
    recipes: dict[str, Recipe] = typed(Recipe, "recipes", params.recipes)
    methods: dict[str, Method] = typed(Method, "methods", params.methods)
    for name, protocol in protocols.items():
        for known in (datasets, recipes):
            if protocol.dataset not in known:
                where = f"{folder / 'protocols.yaml'}: {name}.dataset"
                raise UserError(where, repr(protocol.dataset), nearest(protocol.dataset, list(known)))

    return Suite(
        scale=scale,
        params=params,
        datasets=datasets,
        protocols=protocols,
        weights=typed(Archive, "weights", {}),
        **_grid(folder, params, scale, datasets, protocols, recipes, methods),
    )


def _grid(
    folder: Path,
    params: Scale,
    scale: str,
    datasets: dict[str, Dataset],
    protocols: dict[str, Protocol],
    recipes: dict[str, Recipe],
    methods: dict[str, Method],
) -> dict[str, Any]:
    """Tables, their cells in reading order, and the distinct runs behind them."""
    settings = {
        name: validate(MethodSettings, method.settings, folder / "methods.yaml", (name, "settings"))
        for name, method in methods.items()
    }
    tables: dict[str, Table] = {}
    runs: dict[str, RunSpec] = {}
    cells: list[Cell] = []
    for path in sorted((folder / "tables").glob("*.yaml")):
        table = tables[path.stem] = validate(Table, read_yaml(path), path)
        for number, row in enumerate(table.rows):
            chosen, overrides = _settings(row, f"{path}: rows.{number}", settings)
            for column, paper in zip(table.columns, row.paper, strict=True):
                labelled = _labelled(column, path, protocols)
                dataset = protocols[column.protocol].dataset
                common: dict[str, Any] = {
                    "protocol": column.protocol,
                    "fraction": column.fraction,
                    "labelled": labelled,
                    "method": row.method or "",
                    "overrides": overrides,
                }
                specs = [
                    RunSpec(
                        **common,
                        scale=scale,
                        seed=seed,
                        dataset_name=dataset,
                        dataset=datasets[dataset],
                        recipe=recipes[dataset],
                        settings=chosen,
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
                        paper=paper,
                        runs=[spec.id for spec in specs],
                    )
                )
    return {"tables": tables, "runs": runs, "cells": cells}


def _settings(row: Row, where: str, settings: dict[str, MethodSettings]) -> tuple[MethodSettings, dict[str, Any]]:
    """The row's settings, and those of them that differ from its method's."""
    if row.method is None:
        return MethodSettings(), {}
    if row.method not in settings:
        raise UserError(f"{where}.method", repr(row.method), nearest(row.method, list(settings)))
    default = settings[row.method].model_dump()
    path, _, key = where.partition(": ")
    chosen = validate(MethodSettings, default | row.overrides, Path(path), (key, "overrides"))
    # Typed first, compared after: 0.20 and the default 0.2 are one setting.
    return chosen, {name: value for name, value in chosen.model_dump().items() if value != default[name]}


def _labelled(column: Column, path: Path, protocols: dict[str, Protocol]) -> int:
    if column.protocol not in protocols:
        raise UserError(f"{path}: columns", repr(column.protocol), nearest(column.protocol, list(protocols)))
    fractions = protocols[column.protocol].fractions
    if column.fraction not in fractions:
        where = f"{path}: columns"
        raise UserError(where, f"{column.protocol} {column.fraction}", "one of " + ", ".join(fractions))
    return fractions[column.fraction]
