"""Estimates of policies: against loops that follow the formulas, and against values that are known."""

import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from scipy import stats

from model.policies import cascade
from model.policies.cascade import LEAST_EFFECTIVE, Estimate, Explored, estimate

SEED = 5


def explored(requests: int, places: int, users: int, *, spread: float) -> Explored:
    rng = np.random.default_rng(SEED)
    shape = (requests, places)
    return Explored(
        weight_IK=rng.lognormal(0, spread, shape).cumprod(axis=1),
        reward_IK=rng.integers(0, 3, shape).astype(float),
        predicted_IK=rng.random(shape),
        expected_IK=rng.random(shape),
        own_IK=rng.random(shape),
        user_I=np.append(np.arange(users), rng.integers(0, users, requests - users)),
    )


def slow_self_normalised(of: Explored, requests: list[int]) -> float:
    value = 0.0
    for place in range(of.weight_IK.shape[1]):
        total = math.fsum(of.weight_IK[one, place] for one in requests)
        value += math.fsum(of.weight_IK[one, place] * of.reward_IK[one, place] for one in requests) / total
    return value


def slow_doubly_robust(of: Explored, factors: list[float], requests: list[int]) -> float:
    places, value = of.weight_IK.shape[1], 0.0
    for place in range(places):
        above = {one: of.weight_IK[one, place - 1] if place else 1.0 for one in requests}
        total, total_above = math.fsum(of.weight_IK[one, place] for one in requests), math.fsum(above.values())
        for one in requests:
            future = sum(factors[later] * of.own_IK[one, later] for later in range(place + 1, places))
            modelled = factors[place] * of.predicted_IK[one, place] + future
            value += of.weight_IK[one, place] * (of.reward_IK[one, place] - modelled) / total
            mean = factors[place] * of.expected_IK[one, place] + above[one] * future
            value += mean / total_above
    return value


def test_estimates_and_intervals_are_those_of_the_formulas() -> None:
    of = explored(150, 3, 125, spread=0.1)
    found = estimate(of)
    everything = list(range(150))
    factors = []
    for place in range(3):
        weighed = [of.weight_IK[:, place] @ column[:, place] for column in (of.reward_IK, of.predicted_IK)]
        factors.append(float(weighed[0] / weighed[1]))
    of_user = defaultdict(list)
    for one, user in enumerate(of.user_I.tolist()):
        of_user[user].append(one)
    weights = [sum(float(of.weight_IK[one, 2]) for one in requests) for requests in of_user.values()]
    effective = sum(weights) ** 2 / sum(weight**2 for weight in weights)
    assert found.effective_K[2] == pytest.approx(effective)
    assert found.mean_weight_K == pytest.approx(of.weight_IK.sum(axis=0) / 150)
    quantile = stats.t.ppf(0.975, found.effective - 1)
    slow: list[tuple[Estimate | None, Callable[[list[int]], float]]] = [
        (found.self_normalised, partial(slow_self_normalised, of)),
        (found.doubly_robust, partial(slow_doubly_robust, of, factors)),
    ]
    for given, value_of in slow:
        assert given is not None
        left_out = [value_of([one for one in everything if of.user_I[one] != user]) for user in of_user]
        deviation = float(np.std(left_out)) * math.sqrt(len(left_out) - 1)
        assert given.value == pytest.approx(value_of(everything))
        assert (given.high - given.low) / 2 == pytest.approx(quantile * deviation, rel=1e-5)
        assert (given.high + given.low) / 2 == pytest.approx(given.value)


def test_the_policy_that_explored_has_the_mean_reward() -> None:
    """With weights of 1 the self-normalised estimate is the mean, and its deviation that of users' means."""
    of = explored(300, 4, 300, spread=0.0)
    found = estimate(of).self_normalised
    assert found is not None
    rewards = of.reward_IK.sum(axis=1)
    assert found.value == pytest.approx(rewards.mean())
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, 299) * stats.sem(rewards), rel=1e-5)


def test_few_effective_users_are_refused() -> None:
    for users, is_refused in ((int(LEAST_EFFECTIVE) - 1, True), (int(LEAST_EFFECTIVE), False)):
        of = explored(400, 2, users, spread=0.0)
        # One request a user: as many effective users as there are.
        of = Explored._make(values[:users] for values in of)
        found = estimate(of)
        assert found.effective == pytest.approx(users)
        assert (found.self_normalised is None, found.doubly_robust is None) == (is_refused, is_refused)
    nothing = estimate(of._replace(weight_IK=np.zeros_like(of.weight_IK)))
    assert nothing.effective == 0
    assert nothing.self_normalised is None


def test_a_ranker_that_is_right_takes_the_noise_of_weights_away() -> None:
    """Rewards that are the ranker's values: the doubly robust estimate is their mean under the policy, exactly."""
    rng = np.random.default_rng(SEED)
    requests, candidates = 2_000, 3
    value_IN = rng.random((requests, candidates))
    policy_N, logging_N = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])
    drawn_I = rng.choice(candidates, requests, p=logging_N)
    placed_I1 = value_IN[np.arange(requests), drawn_I][:, None]
    mean_I1 = (value_IN @ policy_N)[:, None]
    weight_I1 = (policy_N / logging_N)[drawn_I][:, None]
    of = Explored(weight_I1, placed_I1, placed_I1, mean_I1, value_IN.max(axis=1)[:, None], np.arange(requests))
    found = estimate(of)
    assert found.doubly_robust is not None
    assert found.doubly_robust.value == pytest.approx(float(mean_I1.mean()))
    plain = found.self_normalised
    assert plain is not None
    assert plain.high - plain.low > 1.5 * (found.doubly_robust.high - found.doubly_robust.low)


@pytest.mark.parametrize("freedom", [99.0, 250.0, 1e6])
def test_students_quantile(freedom: float) -> None:
    assert cascade._student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-6)
