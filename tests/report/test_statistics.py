"""Intervals, paired tests and verdicts against scipy.stats, and against what simulated seeds must give."""

import math

import numpy as np
import pytest
from scipy import stats

from u2pl.report.statistics import ALPHA, Sample, false_discovery, pooled, verdict

VALUES = [79.1, 78.6, 79.9, 79.4]


def test_statistics_are_those_of_scipy() -> None:
    sample = Sample.of(VALUES)
    expected = stats.t.interval(0.95, 3, np.mean(VALUES), stats.sem(VALUES))
    assert (sample.n, sample.mean, sample.std) == pytest.approx((4, np.mean(VALUES), np.std(VALUES, ddof=1)))
    assert sample.interval == pytest.approx(expected, rel=1e-12)
    assert Sample.of([v - 79 for v in VALUES]).p == pytest.approx(stats.ttest_1samp(VALUES, 79).pvalue, rel=1e-12)


def test_the_interval_of_three_seeds_by_hand() -> None:
    # mean 2, s = 1, t(0.975, 2) = 4.302652...
    low, high = Sample.of([1.0, 2.0, 3.0]).interval
    assert (low, high) == pytest.approx((2 - 4.30265273 / math.sqrt(3), 2 + 4.30265273 / math.sqrt(3)))


@pytest.mark.parametrize("values", [[], [79.0], [79.0, 79.0, 79.0], [78.9 + 0.1, 79.0, 78.8 + 0.2]])
def test_without_a_spread_there_is_no_interval_and_no_verdict(values: list[float]) -> None:
    sample = Sample.of(values)
    assert all(math.isnan(value) for value in (*sample.interval, sample.p))
    assert [verdict(sample, paper, 1.0) for paper in (79.0, 20.0)] == ["inconclusive", "inconclusive"]


@pytest.mark.parametrize("paper", np.arange(74, 84, 0.17))
def test_verdicts_are_those_of_scipys_one_sided_tests(paper: float) -> None:
    def p(bound: float, alternative: str) -> float:
        return float(stats.ttest_1samp(VALUES, paper + bound, alternative=alternative).pvalue)

    found, margin = verdict(Sample.of(VALUES), paper, 1.0), 1.0
    equivalent = max(p(-margin, "greater"), p(margin, "less")) < ALPHA
    beyond = min(p(-margin, "less"), p(margin, "greater")) < ALPHA / 2
    assert found == ("reproduced" if equivalent else "not reproduced" if beyond else "inconclusive")


def test_every_verdict_occurs() -> None:
    sample = Sample.of(VALUES)
    assert [verdict(sample, paper, 1.0) for paper in (79.2, 80.0, 82.0, 76.0)] == [
        "reproduced", "inconclusive", "not reproduced", "not reproduced",
    ]  # fmt: skip


def rates(true_difference: float, spread: float, n: int, margin: float, draws: int = 4000) -> dict[str, float]:
    """How often each verdict comes up over simulated sets of seeds."""
    rng = np.random.default_rng([n, 1000 + round(100 * true_difference), round(100 * spread)])
    values = 70 + true_difference + spread * rng.standard_normal((draws, n))
    found = [verdict(Sample.of(row), 70.0, margin) for row in values.tolist()]
    return {name: found.count(name) / draws for name in ("reproduced", "not reproduced", "inconclusive")}


def above(probability: float, draws: int = 4000) -> float:
    """What a rate of that probability exceeds once in a million."""
    return float(stats.binom.isf(1e-6, draws, probability)) / draws


def below(probability: float, draws: int = 4000) -> float:
    return float(stats.binom.ppf(1e-6, draws, probability)) / draws


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("sign", [-1, 1])
def test_at_the_margins_edge_a_verdict_is_wrong_as_often_as_stated(n: int, sign: int) -> None:
    # So small a spread that the far bound does not matter: the one-sided tests are then exact.
    found = rates(sign * 1.0, 0.1, n, margin=1.0)
    assert below(ALPHA) <= found["reproduced"] <= above(ALPHA)
    assert below(ALPHA / 2) <= found["not reproduced"] <= above(ALPHA / 2)


@pytest.mark.parametrize("n", [3, 5])
def test_a_large_spread_is_never_an_excuse(n: int) -> None:
    found = rates(1.0, 2.0, n, margin=1.0)
    assert found["reproduced"] <= above(ALPHA) and found["not reproduced"] <= above(ALPHA / 2)
    assert found["inconclusive"] > 0.9


@pytest.mark.parametrize(("n", "spread"), [(3, 0.3), (5, 1.2)])
def test_the_power_is_that_of_the_noncentral_t(n: int, spread: float) -> None:
    shift = (3.0 - 1.0) / (spread / math.sqrt(n))
    power = float(stats.nct.sf(stats.t.ppf(1 - ALPHA / 2, n - 1), n - 1, shift))
    assert 0.2 < power < 0.999
    assert below(power) <= rates(3.0, spread, n, margin=1.0)["not reproduced"] <= above(power)


@pytest.mark.parametrize(("n", "spread"), [(3, 0.3), (5, 0.5)])
def test_the_power_of_equivalence_is_that_of_its_integral(n: int, spread: float) -> None:
    """Without a difference: the mean lies within m - t s / sqrt(n), integrated over the law of s."""
    quantile = float(stats.t.ppf(1 - ALPHA, n - 1))
    deviations = spread * np.sqrt(stats.chi2.ppf((np.arange(20000) + 0.5) / 20000, n - 1) / (n - 1))
    room = np.clip(1.0 - quantile * deviations / math.sqrt(n), 0, None)
    power = float(np.mean(2 * stats.norm.cdf(room / (spread / math.sqrt(n))) - 1))
    assert 0.2 < power < 0.999
    assert below(power) <= rates(0.0, spread, n, margin=1.0)["reproduced"] <= above(power)


# --- families


def test_q_is_benjamini_and_hochbergs_by_the_definition() -> None:
    """q_i is the smallest level at which the step-up procedure rejects i, found by trying levels."""
    ps = [0.001, 0.2, math.nan, 0.013, 0.014, 0.9, 0.03]
    known = [p for p in ps if not math.isnan(p)]

    def rejected(level: float) -> float:
        """The largest p that is rejected; 0 if none is."""
        passing = [p for rank, p in enumerate(sorted(known), 1) if p <= level * rank / len(known)]
        return max(passing, default=0.0)

    for p, q in zip(ps, false_discovery(ps), strict=True):
        if math.isnan(p):
            assert math.isnan(q)
        else:
            assert rejected(q * 1.0001) >= p and rejected(q * 0.9999) < p
    assert false_discovery([]) == [] and all(map(math.isnan, false_discovery([math.nan])))


def test_two_equal_columns_pool_to_the_two_sample_variance() -> None:
    """The sum of two independent means is a two-sample t test of one against the negative other."""
    a, b = [1.0, 2.5, 1.7], [0.4, 1.9, 3.1, 2.0]
    found = pooled([Sample.of(a), Sample.of(b)])
    expected = stats.ttest_ind(a, [-value for value in b])
    interval = expected.confidence_interval(0.95)
    assert found.mean == pytest.approx((np.mean(a) + np.mean(b)) / 2) and found.n == 7
    assert found.interval == pytest.approx((interval.low / 2, interval.high / 2)) and found.p == pytest.approx(
        expected.pvalue
    )


def test_a_column_of_one_seed_counts_and_one_alone_has_no_interval() -> None:
    one, three = Sample.of([5.0]), Sample.of([1.0, 2.0, 3.0])
    found = pooled([one, three])
    half = stats.t.ppf(0.975, 2) * math.sqrt(1.0 * (1 + 1 / 3)) / 2
    assert found.interval == pytest.approx((3.5 - half, 3.5 + half))
    assert all(map(math.isnan, pooled([one, one]).interval))


@pytest.mark.parametrize("unequal", [False, True])
def test_a_gain_over_columns_covers_as_often_as_stated(unequal: bool) -> None:
    """Five columns of three seeds; with spreads from half to double the typical one, too."""
    rng, draws = np.random.default_rng(7), 3000
    spreads = np.array([0.5, 0.7, 1.0, 1.4, 2.0]) if unequal else np.ones(5)
    truth, hits = np.array([3.0, 1.0, 0.0, 2.0, 1.5]), 0
    for values in truth[:, None] + spreads[:, None] * rng.standard_normal((draws, 5, 3)):
        low, high = pooled([Sample.of(list(column)) for column in values]).interval
        hits += low <= truth.mean() <= high
    assert 0.93 <= hits / draws <= 0.97


def test_the_papers_number_is_one_draw_too() -> None:
    """docs/results.md: a method at the margin from the truth, and a paper that drew once: sd 0.3, three seeds."""
    rng, draws = np.random.default_rng(8), 20000
    ours = 71 + 0.3 * rng.standard_normal((draws, 3))
    papers = 70 + 0.3 * rng.standard_normal(draws)
    found = [verdict(Sample.of(list(own)), paper, 1.0) for own, paper in zip(ours, papers, strict=True)]
    assert found.count("reproduced") / draws == pytest.approx(0.14, abs=0.01)
