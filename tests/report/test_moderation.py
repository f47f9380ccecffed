"""Moderated variances against Smyth's formulas in the plainest form, their limits, and simulated cells."""

import math

import numpy as np
import pytest
from scipy import special, stats

from u2pl.report.moderation import Prior, fitted
from u2pl.report.statistics import Sample, verdict


def samples(spreads: np.ndarray, n: int = 3, seed: int = 0, mean: float = 70.0) -> list[Sample]:
    """A sample of n values for each spread."""
    rng = np.random.default_rng(seed)
    return [Sample.of(list(mean + spread * rng.standard_normal(n))) for spread in spreads]


def varied(cells: int, typical: float, d0: float, seed: int) -> np.ndarray:
    """Standard deviations whose squares are s0^2 d0 / chi^2(d0)."""
    return typical * np.sqrt(d0 / np.random.default_rng(seed).chisquare(d0, cells))


def test_the_prior_solves_smyths_moment_equations() -> None:
    """With different numbers of seeds: both equations are put in, not solved."""
    found = samples(varied(60, 0.5, 6, 1), 3, 2) + samples(varied(40, 0.5, 6, 3), 5, 4)
    prior = fitted(found)
    assert prior is not None and 1 < prior.d0 < 100
    z, noise = [], []
    for sample in found:
        d = sample.n - 1
        z.append(math.log(sample.std**2) - special.psi(d / 2) + math.log(d / 2))
        noise.append(special.polygamma(1, d / 2))
    assert special.polygamma(1, prior.d0 / 2) == pytest.approx(np.var(z, ddof=1) - np.mean(noise), rel=1e-6)
    s0 = math.exp(np.mean(z) + special.psi(prior.d0 / 2) - math.log(prior.d0 / 2))
    assert prior.s0**2 == pytest.approx(s0, rel=1e-9) and prior.pooled == 60 * 2 + 40 * 4


def test_many_cells_give_their_prior_back() -> None:
    prior = fitted(samples(varied(20000, 0.7, 8, 5), 4, 6))
    assert prior is not None
    assert prior.d0 == pytest.approx(8, rel=0.1) and prior.s0 == pytest.approx(0.7, rel=0.02)


def test_the_limits_are_the_plain_and_the_pooled_t_test() -> None:
    sample = Sample.of([1.0, 2.0, 4.0])
    assert Prior(0.0, 9.0, 50).moderated(sample).interval == pytest.approx(sample.interval)
    pooled = Prior(math.inf, 0.5, 40).moderated(sample)
    half = stats.t.ppf(0.975, 40) * 0.5 / math.sqrt(3)
    assert pooled.interval == pytest.approx((sample.mean - half, sample.mean + half))
    between = Prior(4.0, 0.5, 40).moderated(sample)
    assert between.std**2 == pytest.approx((4 * 0.25 + 2 * sample.std**2) / 6) and between.degrees == 6


def test_what_has_no_spread_gets_none() -> None:
    equal, one = Sample.of([3.0, 3.0]), Sample.of([3.0])
    prior = Prior(4.0, 0.5, 40)
    assert prior.moderated(equal) is equal and prior.moderated(one) is one
    assert fitted([equal, one, Sample.of([1.0, 2.0])]) is None


def as_limma(s2: np.ndarray, d: int) -> tuple[float, float]:
    """d0 and s0^2 as limma's fitFDist has them, with its Newton steps for the inverse of trigamma."""
    z = np.log(s2) - special.psi(d / 2) + np.log(d / 2)
    excess = np.sum((z - np.mean(z)) ** 2) / (len(z) - 1) - special.polygamma(1, d / 2)
    if excess <= 0:
        return math.inf, math.exp(np.mean(z))
    y = 0.5 + 1 / excess
    for _ in range(50):
        tri = special.polygamma(1, y)
        y += tri * (1 - tri / excess) / special.polygamma(2, y)
    return 2 * y, math.exp(np.mean(z) + special.psi(y) - math.log(y))


def oracle(spread: float, shift: float, d0: float, cells: int = 120, repeats: int = 300) -> float:
    """How often "reproduced" comes up at three seeds: everything in NumPy, from the laws of mean and variance."""
    rng, hits = np.random.default_rng(9), []
    for _ in range(repeats):
        variances = np.full(cells, spread**2) if math.isinf(d0) else spread**2 * d0 / rng.chisquare(d0, cells)
        means = shift + np.sqrt(variances / 3) * rng.standard_normal(cells)
        s2 = variances * rng.chisquare(2, cells) / 2
        prior, s02 = as_limma(s2, 2)
        posterior = np.full(cells, s02) if math.isinf(prior) else (prior * s02 + 2 * s2) / (prior + 2)
        quantile = stats.t.ppf(0.95, min(prior + 2, 2 * cells))
        hits.append(np.mean(np.abs(means) + quantile * np.sqrt(posterior / 3) < 1))
    return float(np.mean(hits))


@pytest.mark.parametrize("d0", [2.5, 10])
def test_the_prior_is_limmas(d0: float) -> None:
    found = samples(varied(200, 0.6, d0, 21), 3, 22)
    prior = fitted(found)
    assert prior is not None
    expected = as_limma(np.array([sample.std**2 for sample in found]), 2)
    assert (prior.d0, prior.s0**2) == pytest.approx(expected, rel=1e-6)


def rates(spread: float, shift: float, d0: float = 10, cells: int = 120, repeats: int = 40) -> dict[str, float]:
    """Verdicts at three seeds and a margin of 1 over cells whose spreads vary around `spread`."""
    counts = {"reproduced": 0, "not reproduced": 0, "inconclusive": 0}
    for repeat in range(repeats):
        spreads = spread * np.ones(cells) if math.isinf(d0) else varied(cells, spread, d0, 100 + repeat)
        found = samples(spreads, 3, 1000 + repeat)
        prior = fitted(found)
        assert prior is not None
        for sample in found:
            counts[verdict(prior.moderated(sample), 70.0 + shift, 1.0)] += 1
    return {name: count / (cells * repeats) for name, count in counts.items()}


@pytest.mark.parametrize("d0", [4, 10, math.inf])
def test_the_level_holds_at_the_margin(d0: float) -> None:
    found = rates(0.3, 1.0, d0, repeats=300)
    assert found["reproduced"] <= 0.055 and found["not reproduced"] <= 0.03


@pytest.mark.parametrize(
    ("spread", "plain", "power"), [(0.3, 0.93, 0.99), (0.5, 0.56, 0.85), (0.7, 0.29, 0.48), (1.0, 0.13, 0.05)]
)
def test_three_seeds_find_no_difference_as_often_as_the_docs_say(spread: float, plain: float, power: float) -> None:
    """The plain t test's share is that of docs/results.md; at a large one it comes from spreads small by chance."""
    assert oracle(spread, 0.0, 10) == pytest.approx(power, abs=0.015)
    assert rates(spread, 0.0)["reproduced"] == pytest.approx(power, abs=0.03)
    assert (power > plain + 0.05) == (spread < 1)


@pytest.mark.parametrize("spread", [0.3, 0.7])
def test_equal_variances_are_found_as_often_as_by_numpy(spread: float) -> None:
    assert rates(spread, 0.0, math.inf)["reproduced"] == pytest.approx(oracle(spread, 0.0, math.inf), abs=0.03)


def test_one_noisy_cell_among_quiet_ones_is_judged_too_boldly() -> None:
    """docs/results.md: 119 cells of 0.3 and one of 1.0 that lies at the margin."""
    hits, draws = 0, 400
    for draw in range(draws):
        quiet, noisy = samples(varied(119, 0.3, 10, draw), 3, draw), samples(np.array([1.0]), 3, 5000 + draw)
        prior = fitted([*quiet, *noisy])
        assert prior is not None
        hits += verdict(prior.moderated(noisy[0]), 71.0, 1.0) == "reproduced"
    assert hits / draws == pytest.approx(0.21, abs=0.06)
