"""Probabilities of orders under other stages, against loops that follow the definition."""

import numpy as np
import pytest

from model.policies.select import conditionals
from model.policies.select_stages import Select
from tests.model.policies.random_feeds import random_feed, random_stages, stages
from tests.model.policies.slow_select import Feed, read_place

# Utilities are sums of some tens of products. The coldest softmax makes 20 times as much of their rounding.
RELATIVE = 1e-6


def followed(of: Select, feed: Feed, order: list[int], values: list[float], *, explores: bool) -> list[list[float]]:
    found = conditionals(
        of,
        np.array(feed.scores, np.float64),
        np.array(order, np.intp),
        np.array(values),
        group_N=np.array(feed.groups, np.int64),
        vector_ND=np.array(feed.vectors, np.float32),
        explores=explores,
    )
    return [found.probability_K.tolist(), found.mean_K.tolist()]


def by_hand(of: Select, feed: Feed, order: list[int], values: list[float], *, explores: bool) -> list[list[float]]:
    probabilities, means = [0.0] * len(order), [0.0] * len(order)
    for place, row in enumerate(order):
        found = read_place(of, feed, order[:place], explores=explores)
        if found is None:
            break
        if found.probabilities:
            by_row = found.probabilities
        else:
            by_row = {max(found.utilities, key=lambda one: (found.utilities[one], feed.scores[one], -one)): 1.0}
        means[place] = sum(probability * values[one] for one, probability in by_row.items())
        probabilities[place] = by_row.get(row, 0.0)
        if probabilities[place] == 0:
            break
    return [probabilities, means]


def test_conditionals_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(3)
    whole = 0
    for case in range(3_000):
        of, feed, explores = random_stages(rng), random_feed(rng, is_exact=True), case % 2 == 0
        rows = len(feed.scores)
        # Near the order by score, so that many places of many orders have a probability.
        order = np.argsort(-np.array(feed.scores) + rng.normal(scale=0.1, size=rows)).tolist()
        order = order[: int(rng.integers(1, rows + 1))]
        values = rng.normal(size=rows).tolist()
        found = followed(of, feed, order, values, explores=explores)
        expected = by_hand(of, feed, order, values, explores=explores)
        assert found[0] == pytest.approx(expected[0], rel=RELATIVE)
        assert found[1] == pytest.approx(expected[1], rel=RELATIVE, abs=RELATIVE)
        whole += found[0][-1] > 0
    assert whole > 500


def test_a_candidate_that_the_stages_do_not_have_has_no_probability() -> None:
    feed = Feed([3.0, 2.0, 1.0], [0, 1, 2], [[1.0]] * 3)
    for of, first in (
        (stages(explore={"temperature": 1, "head": 3, "share": 1}), None),
        (stages(mmr={"lambda": 1, "head": 3, "by": "id"}), 1.0),
    ):
        probabilities, means = followed(of, feed, [0, -1, 1], [5.0, 6.0, 7.0], explores=True)
        assert first in (None, probabilities[0])
        assert probabilities[0] > 0
        assert probabilities[1:] == [0.0, 0.0]
        assert means[1] > 0
        assert means[2] == 0
