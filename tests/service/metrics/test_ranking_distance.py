"""Distance of rankings, against scipy, against a loop over pairs, and against sets."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from service.metrics.ranking_distance import TOP, Mean, inversions, movement

# Few values, so that ties are many.
SCORES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40)


def by_loop(places: list[int]) -> int:
    return sum(first > second for first, second in itertools.combinations(places, 2))


@given(st.integers(1, 60).flatmap(lambda rows: st.permutations(range(rows))))
def test_inversions_are_those_of_a_loop_over_pairs(places: list[int]) -> None:
    assert inversions(np.array(places)) == by_loop(places)


@pytest.mark.parametrize("rows", [2, 999, 1024, 1025])
def test_inversions_of_long_permutations(rows: int) -> None:
    assert inversions(np.arange(rows)) == 0
    assert inversions(np.arange(rows)[::-1].copy()) == rows * (rows - 1) // 2
    places = np.random.default_rng(rows).permutation(rows)
    assert inversions(places) == by_loop(places.tolist())


@given(SCORES)
def test_movement_is_that_of_two_stable_sorts(scores: list[tuple[int, int]]) -> None:
    before, after = (np.array(column, np.float64) for column in zip(*scores, strict=True))
    moved = movement(before, after)
    orders = [sorted(range(len(scores)), key=lambda n: -given[n]) for given in (before, after)]
    for k, overlap in zip(TOP, moved.overlaps, strict=True):
        assert overlap == len(set(orders[0][:k]) & set(orders[1][:k])) / min(k, len(scores))
    assert moved.first_changes == (orders[0][0] != orders[1][0])
    if len(scores) == 1:
        assert moved.kendall_tau is None
    else:
        places = [[order.index(n) for n in range(len(scores))] for order in orders]
        assert moved.kendall_tau == pytest.approx(stats.kendalltau(*places).statistic, abs=1e-12)


@given(SCORES)
def test_equal_scores_do_not_move_at_all(scores: list[tuple[int, int]]) -> None:
    given_N = np.array([score for score, _ in scores], np.float64)
    moved = movement(given_N, given_N.copy())
    assert moved.kendall_tau in (1.0, None)
    assert moved.overlaps == (1.0, 1.0, 1.0)
    assert not moved.first_changes


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=50))
def test_a_mean_taken_in_one_by_one_is_the_mean_of_all(values: list[float]) -> None:
    mean = Mean()
    for value in values:
        mean.add(value)
    document = mean.document()
    half = stats.norm.ppf(0.975) * np.std(values, ddof=1) / math.sqrt(len(values))
    # Sums of at most 50 float64 of at most 1e3, in another order. The quantile is written with six decimals.
    assert document["mean"] == pytest.approx(np.mean(values), abs=1e-9)
    assert document["high"] - document["mean"] == pytest.approx(half, rel=1e-5, abs=1e-6)
    assert document["mean"] - document["low"] == pytest.approx(half, rel=1e-5, abs=1e-6)
    assert document["requests"] == len(values)


def test_too_few_requests_have_no_interval() -> None:
    assert Mean().document() == {"mean": None, "low": None, "high": None, "requests": 0}
    one = Mean()
    one.add(3.0)
    assert one.document() == {"mean": 3.0, "low": None, "high": None, "requests": 1}
