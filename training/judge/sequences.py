"""Confidence sequences: bounds that hold at every look together, however often and whenever somebody looks.

In: sums over users at one look, or at many. Out: one-sided bounds of a difference. The method is the asymptotic
confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas ("Time-uniform central limit theory and
asymptotic confidence sequences", Annals of Statistics 52(6), 2024), one-sided, by Robbins' mixture over a half-normal
prior ("Statistical methods related to the law of the iterated logarithm", 1970). Two arms of any sizes enter by their
information, 1 over the variance of the difference (Jennison and Turnbull, "Group sequential methods", 2000, 3.1).

The relative difference of two means is Fieller's: `mean of the canary - x * mean of stable` is tested at each x, so
that no quotient is linearised. Values of users have heavy tails, and a small arm keeps its skewness: a bound from few
users would then be crossed too often. Hall's cubic transformation ("On the removal of skewness by transformation",
JRSS B 54, 1992) takes the skewness out of the studentised difference.

Shapes: U users. Fields of a `Moments` have one shape, a look each.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Floats = NDArray[np.float64]

# log(Phi) is all but 0 where a bound lies, so that few rounds give the root to 1e-8.
_ROUNDS = 5
# Below it the transformation is the identity to rounding.
_NO_SKEWNESS = 1e-6


@dataclass(frozen=True, slots=True)
class Moments:
    """Users of an arm at a look, and the mean, variance (of a sample) and third central moment of their values."""

    users: Floats
    mean: Floats
    variance: Floats
    third: Floats

    @classmethod
    def of_values(cls, values_U: Floats) -> "Moments":
        """Moments of one look."""
        users = len(values_U)
        mean = float(values_U.mean()) if users else math.nan
        centred_U = values_U - mean
        variance = float(centred_U @ centred_U) / (users - 1) if users > 1 else math.nan
        third = float((centred_U**3).mean()) if users else math.nan
        return cls(*(np.asarray(value, np.float64) for value in (users, mean, variance, third)))

    @classmethod
    def of_sums(cls, users: Floats, sums: Floats, squares: Floats, cubes: Floats) -> "Moments":
        """Moments of many looks, from sums of powers of the values up to each."""
        with np.errstate(divide="ignore", invalid="ignore"):
            mean, square, cube = sums / users, squares / users, cubes / users
            variance = (square - mean**2) * users / (users - 1)
        return cls(users, mean, variance, cube - 3 * mean * square + 2 * mean**3)


class Bounds(NamedTuple):
    """Estimate with its lower and upper bound, each of its own level. `skewness` is the estimate's."""

    estimate: Floats
    lower: Floats
    upper: Floats
    skewness: Floats


def relative_difference(
    canary: Moments, stable: Moments, *, alpha: tuple[float, float], width: tuple[float, float]
) -> Bounds:
    """Mean of the canary over that of stable, less 1. `alpha` has the levels of the lower and of the upper bound.

    Each is narrowest for its level where it is its `width` from the estimate. They are infinite where stable's mean is
    not surely above 0. NaN where an arm has fewer than 2 users."""

    def limits(information: Floats) -> tuple[Floats, Floats]:
        return boundary(information, alpha[0], width[0]), boundary(information, alpha[1], width[1])

    return _difference(canary, stable, limits)


def fixed_difference(canary: Moments, stable: Moments, alpha: float) -> Bounds:
    """Relative difference as `relative_difference`, with two-sided bounds of a look that was fixed beforehand: of
    several looks together some are wrong more often."""
    limit = np.asarray(special.ndtri(1 - alpha / 2))
    return _difference(canary, stable, lambda _: (limit, limit))


def _difference(canary: Moments, stable: Moments, limits: Callable[[Floats], tuple[Floats, Floats]]) -> Bounds:
    """Fieller's bounds. `limits` are the standard errors to the lower and to the upper one, of an information."""
    with np.errstate(divide="ignore", invalid="ignore"):
        of_canary, of_stable = canary.variance / canary.users, stable.variance / stable.users
        ratio = canary.mean / stable.mean
        error = np.sqrt(of_canary + ratio**2 * of_stable)
        third = canary.third / canary.users**2 - ratio**3 * stable.third / stable.users**2
        skewness = np.where(error > 0, third / error**3, 0.0)
        information = (stable.mean / error) ** 2

        def bound(errors: Floats, side: int) -> Floats:
            limit = _with_skewness(side * errors, skewness)
            # (canary - x stable)^2 = limit^2 (var canary + x^2 var stable), on the side of the limit's sign.
            leading = stable.mean**2 - limit**2 * of_stable
            product = canary.mean * stable.mean
            root = np.sqrt(np.maximum(product**2 - leading * (canary.mean**2 - limit**2 * of_canary), 0.0))
            found: Floats = (product - np.sign(limit) * root) / leading - 1
            is_bounded = (leading > 0) & (stable.mean > 0)
            return np.where(np.isnan(skewness + information), np.nan, np.where(is_bounded, found, -side * np.inf))

        lower, upper = limits(information)
        return Bounds(ratio - 1, bound(lower, 1), bound(upper, -1), skewness)


def lower_bound(estimate: float, parts: list[Floats], alpha: float, width: float) -> float:
    """Lower bound of a sum over independent arms. Each array of `parts` has what single users put into the estimate's
    error (their influence), which sums to about 0."""
    variance = sum(float(part_U @ part_U) for part_U in parts)
    if variance == 0:
        return estimate
    skewness = sum(float((part_U**3).sum()) for part_U in parts) / variance**1.5
    limit = _with_skewness(boundary(np.array(1 / variance), alpha, width), np.array(skewness))
    return estimate - float(limit) * math.sqrt(variance)


def boundary(information: Floats, alpha: float, width: float) -> Floats:
    """Standard errors that an estimate stays within, on one side and at every look, with probability 1 - alpha.

    `information` is 1 / variance of the estimate. The prior's scale makes the bound narrowest at `width`."""
    growth = 1 + information / _prior_information(alpha, width)
    log_mixture = np.log(growth) / 2 - math.log(2 * alpha)
    root = np.sqrt(2 * log_mixture)
    for _ in range(_ROUNDS):
        root = np.sqrt(2 * (log_mixture - special.log_ndtr(root)))
    found: Floats = root * np.sqrt(growth / (growth - 1))
    return found


def information_needed(alpha: float, width: float, power: float = 0.5) -> float:
    """Information at which a bound excludes a value that is `width` from the truth, with probability `power` then.

    Times the variance that one user leaves it is a number of users."""
    beyond = float(special.ndtri(power))

    def excess(log_information: float) -> float:
        information = math.exp(log_information)
        limit = float(boundary(np.array(information), alpha, width))
        return width * math.sqrt(information) - limit - beyond

    start = math.log(_prior_information(alpha, width))
    return math.exp(optimize.brentq(excess, start, start + 10))


def _prior_information(alpha: float, width: float) -> float:
    """Information of the mixture's prior. Waudby-Smith et al. give the scale that is best for a stated information,
    to first order. Here with 2 alpha for one side, and stated by the boundary's `width` there."""
    level = -2 * math.log(2 * alpha)
    growth = level + math.log1p(level)
    information = (1 + 1 / growth) * (level + math.log1p(growth)) / width**2
    return information / growth


def _with_skewness(limit: Floats, skewness: Floats) -> Floats:
    """Limit of a studentised estimate that has a skewness: the inverse of Hall's cubic transformation."""
    with np.errstate(divide="ignore", invalid="ignore"):
        transformed = 3 / skewness * (np.cbrt(1 + skewness * (limit - skewness / 6)) - 1)
    return np.where(np.abs(skewness) < _NO_SKEWNESS, limit, transformed)
