"""A suite of one table, made by hand: two methods, one quoted row, two columns, two seeds."""

from collections.abc import Callable
from pathlib import Path

import pytest
from made import evaluation, record

from u2pl.experiments.schema import Column, Row, Scale, Table
from u2pl.experiments.suite import Cell, Suite
from u2pl.files import write_json

# Percent mIoU of the best checkpoint by method, fraction and seed.
MIOU = {
    ("suponly", "1/8"): [50.0, 52.0],
    ("suponly", "1/4"): [61.5, 61.5],
    ("u2pl", "1/8"): [55.125, 58.375],
    ("u2pl", "1/4"): [60.0, 62.0],
}
LABELLED = {"1/8": 8, "1/4": 16}


@pytest.fixture
def table() -> Table:
    return make_table()


@pytest.fixture
def suite() -> Suite:
    return make_suite()


@pytest.fixture
def suite_on_real_data() -> Suite:
    return make_suite(synthetic=False)


@pytest.fixture
def suite_of_one_seed() -> Suite:
    return make_suite(seeds=1, synthetic=False)


@pytest.fixture
def suite_of_seeds() -> Callable[[int], Suite]:
    return make_suite


def make_table() -> Table:
    return Table(
        caption="Mean IoU (%) of α_0 & friends",
        columns=[Column(protocol="blender", fraction=fraction) for fraction in LABELLED],
        rows=[
            Row(title="SupOnly", method="suponly", paper=[71.55, None]),
            Row(title="C_P|S {50 %} ~#1\\", paper=[76.44, None]),
            Row(title="None", method="u2pl", overrides={"r_low": 1}, paper=[79.01, 79.3]),
        ],
    )


def make_suite(seeds: int = 2, synthetic: bool = True) -> Suite:
    table = make_table()
    cells = [
        Cell(
            table="table2",
            row=row.title,
            column=f"{column.fraction} ({LABELLED[column.fraction]})",
            fraction=column.fraction,
            protocol=column.protocol,
            labelled=LABELLED[column.fraction],
            fidelity="paper",
            checkpoint="best",
            method=row.method or "",
            overrides=row.overrides,
            source="measured" if row.method else "quoted",
            copied_from=row.copied_from,
            paper=paper,
            runs=[run_id(row.method, column.fraction, seed) for seed in range(seeds) if row.method],
        )
        for row in table.rows
        for column, paper in zip(table.columns, row.paper, strict=True)
    ]
    params = Scale(title="small network & data", synthetic=synthetic, seeds=list(range(seeds)))
    return Suite(
        scale="demo",
        params=params,
        datasets={},
        protocols={},
        weights={},
        tables={"table2": table},
        runs={},
        cells=cells,
    )


def run_id(method: str, fraction: str, seed: int) -> str:
    return f"blender-{LABELLED[fraction]}-{method}-seed{seed}"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for (method, fraction), values in MIOU.items():
        for seed, value in enumerate(values):
            run = run_id(method, fraction, seed)
            # The last checkpoint is far off, so that mixing the two up is seen.
            write_json(tmp_path / "runs" / run / "evaluation.json", evaluation(best=value, last=1.0))
            write_json(tmp_path / "runs" / run / "run.json", record(run))
    return tmp_path
