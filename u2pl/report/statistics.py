"""What a few seeds say: intervals, a verdict against one published number, and paired differences.

Seeds are taken as independent draws from a normal distribution, the paper's number as fixed: it was published without a
spread. Values of which no spread is known, of one seed or all equal, have no interval and give no verdict: equal values
mean that the seed changed nothing, so that they are one value.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from scipy.special import stdtr, stdtrit
from scipy.stats import false_discovery_control

ALPHA = 0.05
ROUNDING = 1e-9  # a smaller spread is floating-point noise: one pixel moves a mIoU by more

Verdict = Literal["reproduced", "not reproduced", "inconclusive", "conditional on this list", "not comparable", ""]


@dataclass(frozen=True)
class Sample:
    """Statistics of `n` values: `std` is the sample standard deviation (ddof=1); NaN for what is not known.

    df: degrees of freedom of `std`, where other values told of the spread, too; NaN: n - 1.
    """

    n: int
    mean: float
    std: float
    df: float = math.nan

    @classmethod
    def of(cls, values: Sequence[float]) -> "Sample":
        """The statistics of the values, of which there may be none."""
        return cls(len(values), fmean(values) if values else math.nan, stdev(values) if len(values) > 1 else math.nan)

    @property
    def degrees(self) -> float:
        return self.n - 1 if math.isnan(self.df) else self.df

    @property
    def spread_known(self) -> bool:
        return self.n > 1 and self.std > ROUNDING

    def margin_of_error(self, confidence: float) -> float:
        """Half the width of the two-sided t interval of the mean; NaN if no spread is known."""
        if not self.spread_known:
            return math.nan
        return float(stdtrit(self.degrees, (1 + confidence) / 2)) * self.std / math.sqrt(self.n)

    @property
    def interval(self) -> tuple[float, float]:
        """The two-sided t interval of the mean at 1 - ALPHA; NaN if no spread is known."""
        half = self.margin_of_error(1 - ALPHA)
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """Of the two-sided t test that the mean is 0; NaN if no spread is known."""
        if not self.spread_known:
            return math.nan
        return float(2 * stdtr(self.degrees, -abs(self.mean) * math.sqrt(self.n) / self.std))


def pooled(samples: Sequence[Sample]) -> Sample:
    """The mean of the means of samples that share a variance, as if of one sample.

    s^2 = sum (n_c - 1) s_c^2 / sum (n_c - 1); the mean of C means has the variance s^2 sum (1 / n_c) / C^2. `n` counts
    all values, and `std` is such that std / sqrt(n) is the standard error.
    """
    df, n = sum(sample.n - 1 for sample in samples), sum(sample.n for sample in samples)
    mean = fmean(sample.mean for sample in samples)
    if df < 1:
        return Sample(n, mean, math.nan)
    variance = sum((sample.n - 1) * sample.std**2 for sample in samples if sample.n > 1) / df
    error = math.sqrt(variance * sum(1 / sample.n for sample in samples)) / len(samples)
    return Sample(n, mean, error * math.sqrt(n), df)


def false_discovery(ps: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's q (1995) of a family of p values; NaN stays NaN, and is no member."""
    known = [place for place, p in enumerate(ps) if not math.isnan(p)]
    found = [math.nan] * len(ps)
    if known:
        for place, q in zip(known, false_discovery_control([ps[place] for place in known]), strict=True):
            found[place] = float(q)
    return found


def verdict(ours: Sample, paper: float, margin: float) -> Verdict:
    """Whether `ours` agrees with the paper's number within `margin`, all in the same unit.

    "reproduced": two one-sided t tests at ALPHA (Schuirmann 1987) reject a difference of the margin or more, in both
    directions. "not reproduced": the two-sided interval of the difference at 1 - ALPHA lies outside the margin.
    "inconclusive": neither, or no spread is known. At a true difference of exactly the margin, each of the first two
    comes up with a probability of at most ALPHA.
    """
    if not ours.spread_known:
        return "inconclusive"
    difference = abs(ours.mean - paper)
    # Both one-sided tests reject just where the interval at 1 - 2 ALPHA lies within the margin.
    if difference + ours.margin_of_error(1 - 2 * ALPHA) < margin:
        return "reproduced"
    if difference - ours.margin_of_error(1 - ALPHA) > margin:
        return "not reproduced"
    return "inconclusive"
