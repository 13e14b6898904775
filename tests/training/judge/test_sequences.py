"""Bounds against numerical integration of the mixture, the equations that they solve, and simulated looks.

Shapes: R runs, L looks, U users.
"""

import math

import numpy as np
import pytest
from scipy import integrate, special

from training.judge.sequences import Floats, Moments, boundary, information_needed, lower_bound, relative_difference


@pytest.mark.parametrize("alpha", [0.05, 0.04, 0.001])
@pytest.mark.parametrize("growth", [0.01, 1.0, 300.0])
def test_a_half_normal_mixture_is_one_over_alpha_at_the_boundary(alpha: float, growth: float) -> None:
    width = 0.05
    # The prior's information follows from the boundary's own narrowest place, so it is found by trial.
    scale = 1 / information_needed(alpha, width)
    information = growth / scale
    sum_at_boundary = float(boundary(np.array(information), alpha, width)) * math.sqrt(information)

    def martingale(prior: float) -> float:
        def density(drift: float) -> float:
            log = drift * sum_at_boundary - drift**2 * (information + prior) / 2
            return math.exp(log) * math.sqrt(2 * prior / math.pi)

        peak = sum_at_boundary / (information + prior)
        spread = 12 / math.sqrt(information + prior)
        return float(integrate.quad(density, max(0.0, peak - spread), peak + spread, limit=200)[0])

    level = -2 * math.log(2 * alpha)
    k = level + math.log(1 + level)
    prior = (1 + 1 / k) * (level + math.log(1 + k)) / width**2 / k
    assert martingale(prior) == pytest.approx(1 / alpha, rel=1e-5)


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_a_walk_without_drift_crosses_at_most_with_alpha_over_all_looks(alpha: float) -> None:
    rng = np.random.default_rng(3)
    runs, looks = 8000, 600
    information_L = 3000 * np.geomspace(1e-2, 30, looks)
    steps_RL = rng.standard_normal((runs, looks)) * np.sqrt(np.diff(information_L, prepend=0.0))
    walk_RL = np.cumsum(steps_RL, axis=1)
    crossed = float((walk_RL > boundary(information_L, alpha, 0.05) * np.sqrt(information_L)).any(axis=1).mean())
    assert crossed <= alpha + 3 * math.sqrt(alpha / runs)
    # Looked at once, a bound of 1.645 would be crossed as often. Over 3.5 decades of looks most of alpha is spent.
    assert crossed >= alpha / 4


def test_bounds_of_a_relative_difference_solve_fiellers_equation_after_halls_transformation() -> None:
    rng = np.random.default_rng(0)
    canary_U, stable_U = rng.lognormal(0.0, 1.2, 900), rng.lognormal(0.1, 1.2, 7000)
    alpha, width = (0.05, 0.04), (0.05, 0.1)
    found = relative_difference(Moments.of_values(canary_U), Moments.of_values(stable_U), alpha=alpha, width=width)
    ratio = canary_U.mean() / stable_U.mean()
    assert float(found.estimate) == pytest.approx(ratio - 1)

    def spread(x: float) -> float:
        return math.sqrt(canary_U.var(ddof=1) / 900 + x**2 * stable_U.var(ddof=1) / 7000)

    third = ((canary_U - canary_U.mean()) ** 3).mean() / 900**2
    third -= ratio**3 * ((stable_U - stable_U.mean()) ** 3).mean() / 7000**2
    skewness = third / spread(ratio) ** 3
    assert float(found.skewness) == pytest.approx(skewness)
    information = np.array((stable_U.mean() / spread(ratio)) ** 2)
    for bound, place, side in ((found.lower, 0, 1), (found.upper, 1, -1)):
        x = float(bound) + 1
        studentised = (canary_U.mean() - x * stable_U.mean()) / spread(x)
        transformed = studentised + skewness / 3 * studentised**2 + skewness**2 / 27 * studentised**3 + skewness / 6
        assert transformed == pytest.approx(side * float(boundary(information, alpha[place], width[place])), rel=1e-6)
    # Values are skewed to the right, those of the small arm count: its true mean may be far above, hardly far below.
    assert found.upper - found.estimate > 1.2 * (found.estimate - found.lower)


def test_moments_of_sums_and_of_values_are_equal() -> None:
    values_U = np.random.default_rng(1).gamma(0.5, 3.0, 500)
    ones = np.arange(1.0, 501.0)
    at_looks = Moments.of_sums(ones, *(np.cumsum(values_U**power) for power in (1, 2, 3)))
    for look in (99, 499):
        at_once = Moments.of_values(values_U[: look + 1])
        for name in ("users", "mean", "variance", "third"):
            assert getattr(at_looks, name)[look] == pytest.approx(float(getattr(at_once, name)))


def test_nothing_is_relative_to_a_mean_that_may_be_zero_and_nothing_is_known_of_one_user() -> None:
    rng = np.random.default_rng(2)
    about_zero = Moments.of_values(rng.standard_normal(1000))
    canary = Moments.of_values(rng.standard_normal(1000) + 5)
    found = relative_difference(canary, about_zero, alpha=(0.05, 0.05), width=(0.05, 0.05))
    assert (float(found.lower), float(found.upper)) == (-math.inf, math.inf)
    one = Moments.of_values(np.array([1.0]))
    assert math.isnan(float(relative_difference(one, canary, alpha=(0.05, 0.05), width=(0.05, 0.05)).upper))


@pytest.mark.parametrize("power", [0.5, 0.8])
def test_the_information_needed_excludes_the_width_with_the_power(power: float) -> None:
    information = information_needed(0.05, 0.02, power)
    beyond = 0.02 * math.sqrt(information) - float(boundary(np.array(information), 0.05, 0.02))
    assert special.ndtr(beyond) == pytest.approx(power, abs=1e-6)
    # Four times the information for half the width.
    assert information_needed(0.05, 0.01, power) == pytest.approx(4 * information, rel=1e-6)


def test_a_lower_bound_of_parts_is_that_of_means() -> None:
    rng = np.random.default_rng(5)
    one_U, other_U = rng.exponential(1.0, 3000), rng.exponential(1.0, 500)
    parts: list[Floats] = [(one_U - one_U.mean()) / 3000, -(other_U - other_U.mean()) / 500]
    lower = lower_bound(one_U.mean() - other_U.mean(), parts, 0.01, 0.1)
    variance = one_U.var() / 3000 + other_U.var() / 500
    plain = one_U.mean() - other_U.mean() - float(boundary(np.array(1 / variance), 0.01, 0.1)) * math.sqrt(variance)
    # The smaller arm is subtracted: the difference is skewed to the left, so that it may be further below.
    assert lower < plain < lower + 0.5 * math.sqrt(variance)
