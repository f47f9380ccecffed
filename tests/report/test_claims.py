"""Claims against SciPy's paired t test, and Holm's correction against the closed test that it is."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made import evaluation, record
from scipy import stats

from u2pl.experiments.schema import Claim
from u2pl.experiments.suite import Suite
from u2pl.files import write_json
from u2pl.report.claims import COLUMNS, holm, outcomes, write_claims

SEEDS = 5
Make = Callable[[int], Suite]


def closed(ps: list[float]) -> list[float]:
    """The largest Bonferroni p of all sets of hypotheses that a hypothesis is in, by enumeration."""
    everything = range(len(ps))
    sets = [s for size in range(1, len(ps) + 1) for s in itertools.combinations(everything, size)]
    return [max(min(1.0, len(s) * min(ps[i] for i in s)) for s in sets if one in s) for one in everything]


def test_holm_is_the_closed_bonferroni_test() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        ps = list(rng.uniform(0, rng.choice([0.02, 0.2, 1.0]), rng.integers(1, 7)))
        np.testing.assert_allclose(holm(ps), closed(ps))
    assert holm([0.01, 0.01]) == [0.02, 0.02] and holm([]) == []
    assert holm([0.01, math.nan])[0] == 0.02 and math.isnan(holm([0.01, math.nan])[1])


def claimed(suite: Suite, tmp_path: Path, better: dict[str, list[float]], worse: dict[str, list[float]]) -> Suite:
    """Two methods at two fractions, whose evaluations say what is given, and one claim of both columns."""
    for method, values in (("u2pl", better), ("suponly", worse)):
        for fraction, miou in values.items():
            runs = next(c.runs for c in suite.cells if c.method == method and c.fraction == fraction)
            for run, value in zip(runs, miou, strict=True):
                write_json(tmp_path / "runs" / run / "evaluation.json", evaluation(best=value, last=1.0))
                write_json(tmp_path / "runs" / run / "run.json", record(run))
    table = suite.tables["table2"].model_copy(update={"claims": [Claim(claim="gains", better="None", worse="SupOnly")]})
    return suite.model_copy(update={"tables": {"table2": table}})


def test_a_claim_is_a_paired_t_test_in_each_column(suite_of_seeds: Make, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    lists = rng.normal(60, 5, SEEDS)
    worse = {"1/8": list(lists), "1/4": list(lists + 3)}
    better = {name: list(np.array(v) + rng.normal(2, 0.5, SEEDS)) for name, v in worse.items()}
    suite = claimed(suite_of_seeds(SEEDS), tmp_path, better, worse)
    found = outcomes(suite, tmp_path)
    assert list(found.columns) == COLUMNS and len(found) == 2
    for fraction, row in found.set_index("fraction").iterrows():
        a, b = (np.array(v[str(fraction)]) for v in (better, worse))
        test = stats.ttest_rel(a, b)
        interval = test.confidence_interval(0.95)
        assert row["n"] == SEEDS
        np.testing.assert_allclose(
            row[["difference", "low", "high", "p"]].astype(float),
            [(a - b).mean(), interval.low, interval.high, test.pvalue],
            rtol=1e-6,
        )
    np.testing.assert_allclose(found["p_holm"], closed(list(found["p"])))
    assert found["holds"].tolist() == ["yes", "yes"]
    target = tmp_path / "claims.csv"
    write_claims(suite, tmp_path, target)
    pd.testing.assert_frame_equal(pd.read_csv(target, keep_default_na=False), found, check_dtype=False)


@pytest.mark.parametrize(("shift", "spread", "holds"), [(-3.0, 0.3, "reversed"), (0.1, 3.0, "no"), (2.0, 0.0, "no")])
def test_what_fails_is_said_to(suite_of_seeds: Make, tmp_path: Path, shift: float, spread: float, holds: str) -> None:
    """Clearly worse; not clear; and without any spread, which says nothing."""
    noise = spread * np.array([-1.0, 1.2, 0.3, -0.9, 0.4])
    worse = {"1/8": [50.0, 52, 48, 55, 51], "1/4": [60.0, 62, 61, 65, 61]}
    better = {name: list(np.array(v) + shift + noise) for name, v in worse.items()}
    suite = claimed(suite_of_seeds(SEEDS), tmp_path, better, worse)
    assert set(outcomes(suite, tmp_path)["holds"]) == {holds}


def test_without_claims_there_are_columns_alone(suite: Suite, tmp_path: Path) -> None:
    write_claims(suite, tmp_path, tmp_path / "claims.csv")
    assert (tmp_path / "claims.csv").read_text() == ",".join(COLUMNS) + "\n"
