"""Planning and tables at paper scale against loops over the same files."""

import csv
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import pytest
import yaml
from made import evaluation, record

from u2pl.experiments import load_suite
from u2pl.experiments.plan import Plan, plan
from u2pl.files import write_json
from u2pl.report.cells import write_cells, write_comparisons
from u2pl.report.tables import write_table

PARAMS = Path("params")


@pytest.mark.benchmark(group="suite")
def test_planning(compare_time: Any, tmp_path: Path) -> None:
    """Reading and checking the parameters, and the plan of every table; plain: the YAML alone."""

    def suite() -> Plan:
        return plan(load_suite("paper"), [], tmp_path / "data", tmp_path / "results")

    def straight_line() -> dict[str, Any]:
        paths = [*PARAMS.glob("*.yaml"), *PARAMS.glob("tables/*.yaml"), PARAMS / "scales" / "paper.yaml"]
        return {path.stem: yaml.safe_load(path.read_text()) for path in paths}

    read = straight_line()
    trained = sum("method" in row for name in ("table2", "table5") for row in read[name]["rows"])
    parts = {part.name: part for part in suite().parts}
    assert trained > 0 and {"table2", "table5", "in all"} <= set(parts)
    for name in ("table2", "table5"):
        rows = [row for row in read[name]["rows"] if "method" in row]
        assert parts[name].trainings == len(rows) * len(read[name]["columns"]) * len(read["paper"]["seeds"])
    compare_time(suite, straight_line, rounds=21)


@pytest.mark.benchmark(group="suite")
def test_table_building(compare_time: Any, tmp_path: Path) -> None:
    """All evaluations to cells.csv and every table in three formats; plain: their means as one CSV each."""
    suite_ = load_suite("paper")
    for i, run in enumerate(suite_.runs):
        miou = 60 + i % 17
        write_json(tmp_path / "runs" / run / "evaluation.json", evaluation(miou + 1, miou, classes=21))
        write_json(tmp_path / "runs" / run / "run.json", record(run))
    ours, plain = tmp_path / "ours", tmp_path / "plain"
    sources = tmp_path / "cells.csv", tmp_path / "comparisons.csv"
    plain.mkdir()

    def suite() -> None:
        write_cells(suite_, tmp_path, sources[0])
        write_comparisons(suite_, tmp_path, sources[1])
        for name, table in suite_.tables.items():
            write_table(*sources, table, name, suite_.params, ours / name)

    def straight_line() -> None:
        for name in suite_.tables:
            with (plain / f"{name}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                for cell in suite_.cells:
                    if cell.table == name and cell.runs:
                        paths = [tmp_path / "runs" / run / "evaluation.json" for run in cell.runs]
                        values = [json.loads(path.read_text())[cell.checkpoint]["miou"] for path in paths]
                        writer.writerow([cell.row, cell.protocol, cell.fraction, fmean(values), cell.paper])

    suite()
    straight_line()
    for name in suite_.tables:
        frame = pd.read_csv(ours / f"{name}.csv")
        found = frame[[column for column in frame if column.endswith(" mean")]].stack().dropna()
        with (plain / f"{name}.csv").open(newline="") as file:
            expected = [float(row[3]) for row in csv.reader(file)]
        assert sorted(found) == pytest.approx(sorted(expected))
    compare_time(suite, straight_line, rounds=5)
