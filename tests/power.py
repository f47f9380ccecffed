"""How often "reproduced" comes up without any true difference: which n is needed for a verdict.

    .venv/bin/python -m tests.power

Margin 1 mIoU, the paper's number at the method's true mean. The moderated column has 120 cells of three seeds whose
variances scatter as s0^2 * 10 / chi^2(10).
"""

import numpy as np

from u2pl.report.moderation import fitted
from u2pl.report.statistics import Sample, verdict

DRAWS, CELLS = 4000, 120


def plain(spread: float, n: int, rng: np.random.Generator) -> float:
    draws = 70 + spread * rng.standard_normal((DRAWS, n))
    return float(np.mean([verdict(Sample.of(row), 70.0, 1.0) == "reproduced" for row in draws.tolist()]))


def moderated(typical: float, rng: np.random.Generator) -> float:
    hits = []
    for _ in range(DRAWS // CELLS):
        spreads = typical * np.sqrt(10 / rng.chisquare(10, CELLS))
        samples = [Sample.of(list(70 + spread * rng.standard_normal(3))) for spread in spreads]
        prior = fitted(samples)
        assert prior is not None
        hits += [verdict(prior.moderated(sample), 70.0, 1.0) == "reproduced" for sample in samples]
    return float(np.mean(hits))


def needed(spread: float, power: float, rng: np.random.Generator) -> int:
    """The least n whose share reaches `power`."""
    return next(n for n in range(2, 100) if plain(spread, n, rng) >= power)


def main() -> None:
    rng = np.random.default_rng(0)
    print("| SD over seeds | n = 3 | 5 | 10 | n for 80 % | 90 % | n = 3, moderated |")
    print("|---|---|---|---|---|---|---|")
    for spread in (0.3, 0.5, 0.7, 1.0):
        shares = " | ".join(f"{plain(spread, n, rng):.2f}" for n in (3, 5, 10))
        seeds = " | ".join(str(needed(spread, power, rng)) for power in (0.8, 0.9))
        print(f"| {spread} | {shares} | {seeds} | {moderated(spread, rng):.2f} |")


if __name__ == "__main__":
    main()
