"""Statistics over seeds: intervals, paired tests with Holm's correction, and what a comparison could have found.

Two networks with the same seed see the same order of rows and the same split, so seeds are pairs: in are one value per
seed, or one difference per seed. All tests are two-sided.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

# More seeds than anybody trains: beyond this the answer is "more than".
MAX_SEEDS = 10_000

# Gauss-Legendre quadrature on [-1, 1].
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation of `n` seeds, and the t interval of the mean (None below 2 seeds)."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


def spread(values: Sequence[float], level: float = 0.95) -> Spread:
    """Mean, standard deviation and the interval mean +- t(n-1) sd / sqrt(n). Raises ValueError without a value."""
    if not values:
        raise ValueError("a mean over seeds needs at least one seed")
    array = np.asarray(values, dtype=np.float64)
    mean, n = float(array.mean()), array.size
    if n < 2:
        return Spread(n, mean, None, None, None)
    sd = float(array.std(ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * sd / math.sqrt(n)
    return Spread(n, mean, sd, mean - half, mean + half)


def paired_p(differences: Sequence[float]) -> float | None:
    """p of the paired t-test, from one difference per seed; None where it is undefined (below 2 seeds, no spread)."""
    found = spread(differences)
    if not found.sd:
        return None
    t = found.mean / (found.sd / math.sqrt(found.n))
    return float(2 * stats.t.sf(abs(t), found.n - 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p: the chance of any false finding in the family stays below the level tested at."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def power(difference: float, sd: float, n: int, alpha: float) -> float:
    """Chance that the paired t-test of n seeds finds a true `difference`, given the differences' `sd`."""
    freedom = n - 1
    shift = abs(difference) / sd * math.sqrt(n)
    critical = float(stats.t.isf(alpha / 2, freedom))
    # Not scipy's noncentral t, which gives NaN for few seeds at strict levels. Given the estimated spread, a chi(n - 1)
    # variable x, the test finds the difference with normal probability; nodes are dense where that turns, at `turn`.
    top = float(stats.chi.isf(1e-15, freedom))
    turn = min(shift * math.sqrt(freedom) / critical, top)
    found = 0.0
    for low, high in ((0.0, turn), (turn, top)):
        x = low + (high - low) * (_NODES + 1) / 2
        bound = critical * x / math.sqrt(freedom)
        chance = special.ndtr(shift - bound) + special.ndtr(-shift - bound)
        found += (high - low) / 2 * float(_WEIGHTS @ (chance * stats.chi.pdf(x, freedom)))
    return min(found, 1.0)


def minimum_detectable(sd: float, n: int, alpha: float, wanted: float) -> float | None:
    """The smallest true difference that n seeds find with power `wanted`; None below 2 seeds or without spread."""
    if n < 2 or sd == 0:
        return None
    high = sd
    while power(high, sd, n, alpha) < wanted:
        high *= 2
    return float(optimize.brentq(lambda difference: power(difference, sd, n, alpha) - wanted, 0.0, high))


def seeds_needed(difference: float, sd: float, alpha: float, wanted: float) -> int | None:
    """The fewest seeds (2 or more) that find a true `difference` with power `wanted`; None above MAX_SEEDS."""
    if difference == 0:
        return None
    if sd == 0:
        return 2
    low, high = 1, 2
    while power(difference, sd, high, alpha) < wanted:
        low, high = high, high * 2
        if low >= MAX_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(difference, sd, middle, alpha) >= wanted else (middle, high)
    return high if high <= MAX_SEEDS else None
