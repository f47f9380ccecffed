"""Empirical-Bayes variances (Smyth 2004): what the spreads of all cells say about the spread of one.

Three seeds know their own standard deviation badly. Cells of a scale have similar ones; a cell's variance is drawn
towards a common one, by as much as the cells agree. Plain t intervals stand beside.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

from u2pl.report.statistics import Sample


@dataclass(frozen=True)
class Prior:
    """Variances are s0^2 d0 / chi^2(d0); d0 is infinite where all are equal. `pooled`: degrees of freedom of all."""

    d0: float
    s0: float
    pooled: float

    def moderated(self, sample: Sample) -> Sample:
        """The sample with s~^2 = (d0 s0^2 + d s^2) / (d0 + d) and d0 + d degrees of freedom, at most the pooled ones.

        A sample without a spread stays as it is.
        """
        if not sample.spread_known:
            return sample
        d, s2 = sample.degrees, sample.std**2
        share = 1.0 if math.isinf(self.d0) else self.d0 / (self.d0 + d)
        return replace(sample, std=math.sqrt(share * self.s0**2 + (1 - share) * s2), df=min(self.d0 + d, self.pooled))


def fitted(samples: Iterable[Sample]) -> Prior | None:
    """The prior from the moments of log s^2 (Smyth 2004, section 6.2); None with fewer than two known spreads.

    With z = log s^2 - digamma(d / 2) + log(d / 2): trigamma(d0 / 2) = var z - mean trigamma(d / 2), and
    log s0^2 = mean z + digamma(d0 / 2) - log(d0 / 2).
    """
    known = [sample for sample in samples if sample.spread_known]
    if len(known) < 2:
        return None
    d = np.array([sample.degrees for sample in known])
    z = np.log([sample.std**2 for sample in known]) - digamma(d / 2) + np.log(d / 2)
    excess = float(z.var(ddof=1) - polygamma(1, d / 2).mean())
    if excess <= 0:
        return Prior(math.inf, math.exp(z.mean() / 2), float(d.sum()))
    # trigamma falls from infinity to 0
    half = float(brentq(lambda x: polygamma(1, x) - excess, 1e-8, 1 / excess + 1))
    return Prior(2 * half, math.exp((z.mean() + digamma(half) - math.log(half)) / 2), float(d.sum()))
