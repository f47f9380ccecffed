"""Moderated variances against Smyth's formulas in the plainest form, their limits, and simulated cells."""

import math

import numpy as np
import pytest
from scipy import special, stats

from u2pl.report.moderation import Prior, fitted
from u2pl.report.statistics import ALPHA, Sample, verdict


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
    found = rates(0.3, 1.0, d0)
    assert found["reproduced"] <= ALPHA + 0.015 and found["not reproduced"] <= ALPHA / 2 + 0.015


@pytest.mark.parametrize(("spread", "plain", "power"), [(0.3, 0.93, 0.995), (0.5, 0.56, 0.86), (0.7, 0.30, 0.48)])
def test_three_seeds_find_no_difference_as_often_as_the_docs_say(spread: float, plain: float, power: float) -> None:
    """The plain t test's share is that of docs/results.md."""
    assert rates(spread, 0.0)["reproduced"] == pytest.approx(power, abs=0.03)
    assert power > plain + 0.05
