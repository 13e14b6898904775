"""The front of quality and cost and the choice under a budget, against a search over all networks, and times."""

import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from training.compare.budget import Budget, pareto_front, under_budget
from training.compare.scoring_cost import BLOCKS, in_blocks

NAMES = ("a", "b", "c", "d", "e")
# Few values, so that many are equal.
AMOUNTS = st.lists(st.integers(1, 4).map(float), min_size=len(NAMES), max_size=len(NAMES))


@given(AMOUNTS, AMOUNTS, st.sampled_from([1.0, -1.0]))
def test_no_network_equals_one_of_the_front_in_both(ms: list[float], means: list[float], sign: float) -> None:
    cost, quality = dict(zip(NAMES, ms, strict=True)), dict(zip(NAMES, means, strict=True))
    front = pareto_front(cost, quality, "higher" if sign > 0 else "lower")
    points = {(cost[name], sign * quality[name]) for name in front}
    for name in NAMES:
        as_good = [point for point in points if point[0] <= cost[name] and point[1] >= sign * quality[name]]
        assert as_good, "what is left out is beaten by one of the front"
    for one, other in itertools.permutations(points, 2):
        assert not (one[0] <= other[0] and one[1] >= other[1])
    assert len(points) == len(front)
    assert [cost[name] for name in front] == sorted(cost[name] for name in front)


MS = {"small": 1.0, "middle": 2.0, "large": 4.0, "huge": 9.0}
VALUES = {
    "small": {"0": 0.710, "1": 0.712, "2": 0.711},
    "middle": {"0": 0.720, "1": 0.726, "2": 0.721},
    "large": {"0": 0.722, "1": 0.724, "2": 0.726},
    "huge": {"0": 0.800, "1": 0.800, "2": 0.800},
}


def test_the_cheapest_that_is_as_good_as_the_best_under_the_budget() -> None:
    found = under_budget(Budget(ms=5.0), MS, VALUES, "higher")
    assert (found["best"], found["chosen"], found["over"]) == ("large", "middle", ["huge"])
    differences = [VALUES["middle"][seed] - VALUES["large"][seed] for seed in VALUES["large"]]
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    shown = found["against_best"]["middle"]
    assert (shown["low"], shown["high"]) == pytest.approx((interval.low, interval.high))
    assert shown["difference"] == pytest.approx(statistics.fmean(differences))
    assert not found["against_best"]["small"]["low"] <= 0 <= found["against_best"]["small"]["high"]
    assert found["against_best"]["large"] is None


def test_lower_may_be_better_and_a_budget_may_have_room_for_none() -> None:
    assert under_budget(Budget(ms=5.0), MS, VALUES, "lower")["chosen"] == "small"
    nothing = under_budget(Budget(ms=0.5), MS, VALUES, "higher")
    assert (nothing["best"], nothing["chosen"], nothing["over"]) == (None, None, list(MS))


def test_one_seed_shows_no_network_to_be_as_good() -> None:
    values = {name: {"0": by_seed["0"]} for name, by_seed in VALUES.items()}
    found = under_budget(Budget(ms=5.0), MS, values, "higher")
    assert found["chosen"] == found["best"] == "large"


def test_costs_are_medians_of_blocks_and_ratios_within_them() -> None:
    now = 0.0
    turns = {"plain": itertools.count(), "twice": itertools.count()}

    def call(name: str, seconds: float) -> None:
        nonlocal now
        next(turns[name])
        now += seconds

    calls = {"plain": lambda: call("plain", 0.01), "twice": lambda: call("twice", 0.02)}
    found = in_blocks(calls, "plain", lambda: now)
    assert found["plain"].ms == pytest.approx(10)
    assert found["plain"].ratio == 1
    assert found["twice"].ms == pytest.approx(20)
    assert found["twice"].ratio == pytest.approx(2)
    assert next(turns["twice"]) >= BLOCKS + 1, "one call a block at the least, and one to warm up"
