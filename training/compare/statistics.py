"""Statistics over seeds: intervals, paired tests with Holm's correction, and what a comparison could have found.

Two networks with the same seed see the same order of rows and the same split, so seeds are pairs: in are one value per
seed, or one difference per seed. `crossed` adds the users: another training, on other users. All tests are two-sided.

Shapes: S seeds, R bootstrap draws of users.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from training.metrics.bootstrap import MIN_DEFINED_SHARE, Floats

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
    """p of the paired t-test, from one difference per seed. None where it is undefined (below 2 seeds, no spread)."""
    found = spread(differences)
    if not found.sd:
        return None
    t = found.mean / (found.sd / math.sqrt(found.n))
    return float(2 * stats.t.sf(abs(t), found.n - 1))


@dataclass(frozen=True, slots=True)
class Crossed:
    """Interval and two-sided p of a mean difference over seeds and users together.

    `users_sd` is the standard error that would be left with any number of seeds."""

    low: float
    high: float
    p: float
    users_sd: float


def crossed(differences_S: Sequence[float], replicates_RS: Floats, level: float = 0.95) -> Crossed | None:
    """Crossed bootstrap: the seeds' differences on all users, and their replicates on the same draws of users.

    Seeds and users are crossed random effects (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007), so
    the mean's variance is that of seeds / S + that of users + their interaction / S. Drawing both with replacement
    counts the interaction three times and, at five seeds, a percentile interval of seeds covers 82 %. So the parts are
    taken one by one: users with interaction from the draws' mean over seeds, seeds from the spread of
    `differences_S` less the interaction, which is how much more a single seed moves over draws than the mean does.
    The critical value is Cochran's (Cochran and Cox, "Experimental Designs", 4.14): Student's t of S - 1 and the normal
    one, weighted by the two variances. None below 2 seeds, without spread, or where fewer than 95 % of the draws
    define every seed's difference.
    """
    differences = np.asarray(differences_S, np.float64)
    draws_RS = replicates_RS[~np.isnan(replicates_RS).any(axis=1)]
    seeds, mean = differences.size, float(differences.mean())
    if seeds < 2 or len(draws_RS) < max(2, MIN_DEFINED_SHARE * len(replicates_RS)):
        return None
    over_users = float(draws_RS.mean(axis=1).var(ddof=1))
    interaction = max(float(draws_RS.var(axis=0, ddof=1).mean()) - over_users, 0.0) / (seeds - 1)
    over_seeds = max(float(differences.var(ddof=1)) / seeds - interaction, 0.0)
    error = math.sqrt(over_users + over_seeds)
    if error <= 1e-12 * float(np.abs(differences).max()):  # rounding
        return None

    def critical(of_seeds: float) -> float:
        """Cochran's critical value where Student's is `of_seeds`."""
        of_users = -float(special.ndtri(special.stdtr(seeds - 1, -of_seeds)))
        return (over_seeds * of_seeds + over_users * of_users) / error**2

    half = critical(float(special.stdtrit(seeds - 1, (1 + level) / 2))) * error
    value, most = abs(mean) / error, 1.0
    while critical(most) < value:
        most *= 2
    p = 2 * float(special.stdtr(seeds - 1, -optimize.brentq(lambda x: critical(x) - value, 0.0, most)))
    return Crossed(mean - half, mean + half, p, math.sqrt(max(over_users - interaction, 0.0)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p: the chance of any false finding in the family stays below the level tested at."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def power(difference: float, sd: float, n: int, alpha: float, users_sd: float = 0.0) -> float:
    """Chance that the test over n seeds and the users finds a true `difference`. `sd` is that of the seeds'
    differences. `users_sd` is the standard error that no seed takes away. Without it the chance is the paired
    t-test's."""
    freedom, of_users = n - 1, users_sd**2
    error = math.hypot(sd / math.sqrt(n), users_sd)
    shift = abs(difference) / error
    student, normal = float(stats.t.isf(alpha / 2, freedom)), float(stats.norm.isf(alpha / 2))

    def bound(x: Floats) -> Floats:
        """Half the width of the interval over `error` where the seeds' spread was estimated as sd x / sqrt(n - 1)."""
        of_seeds = sd**2 / n * x**2 / freedom
        total: Floats = (of_seeds * student + of_users * normal) / np.sqrt(of_seeds + of_users) / error
        return total

    # Not scipy's noncentral t, which gives NaN for few seeds at strict levels. Given x, a chi(n - 1) variable, the test
    # finds the difference with normal probability. Nodes are dense where that changes, at `turn`.
    top = float(stats.chi.isf(1e-15, freedom))
    grid = np.linspace(0.0, top, 1001)[1:]
    turn = float(np.interp(shift, bound(grid), grid))
    found = 0.0
    for low, high in ((0.0, turn), (turn, top)):
        x = low + (high - low) * (_NODES + 1) / 2
        chance = special.ndtr(shift - bound(x)) + special.ndtr(-shift - bound(x))
        found += (high - low) / 2 * float(_WEIGHTS @ (chance * stats.chi.pdf(x, freedom)))
    return min(found, 1.0)


def minimum_detectable(sd: float, n: int, alpha: float, wanted: float, users_sd: float = 0.0) -> float | None:
    """The smallest true difference that n seeds find with power `wanted`. None below 2 seeds or without spread."""
    if n < 2 or sd == 0:
        return None
    high = math.hypot(sd, users_sd)
    while power(high, sd, n, alpha, users_sd) < wanted:
        high *= 2
    return float(optimize.brentq(lambda difference: power(difference, sd, n, alpha, users_sd) - wanted, 0.0, high))


def seeds_needed(difference: float, sd: float, alpha: float, wanted: float, users_sd: float = 0.0) -> int | None:
    """The fewest seeds (2 or more) that find a true `difference` with power `wanted`. None above MAX_SEEDS, and where
    the users alone leave too wide an interval."""
    if difference == 0:
        return None
    if sd == 0:
        return 2 if users_sd == 0 else None
    if power(difference, sd, MAX_SEEDS, alpha, users_sd) < wanted:
        return None
    seeds = range(2, MAX_SEEDS + 1)
    return seeds[bisect_left(seeds, x=True, key=lambda n: power(difference, sd, n, alpha, users_sd) >= wanted)]
