"""Selection: against loops that follow its definition, and by the properties of an order."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats

from model.policies.draws import Draws
from model.policies.places import NO_GROUP
from model.policies.select import Selection, select
from model.policies.select_stages import Select
from tests.model.policies.random_feeds import random_feed, random_stages, stages
from tests.model.policies.slow_select import Feed, read_place

CASES = 10_000
# Utilities of real vectors are sums of some tens of products: their rounding is far below it, their gaps above.
ROUNDING = 1e-9


def selected(of: Select, feed: Feed, top_k: int | None = None, draws: Draws | None = None) -> Selection:
    return select(
        of,
        np.array(feed.scores, np.float64),
        group_N=np.array(feed.groups, np.int64),
        vector_ND=np.array(feed.vectors, np.float32),
        top_k=top_k,
        draws=draws,
    )


@pytest.mark.parametrize("is_exact", [True, False])
def test_every_place_has_what_the_definition_puts_there(is_exact: bool) -> None:
    rng = np.random.default_rng(7)
    relaxed = dropped = drawn = 0
    for case in range(CASES // 2):
        of, feed = random_stages(rng), random_feed(rng, is_exact=is_exact)
        top_k = int(rng.integers(1, 15)) if rng.random() < 0.4 else None
        draws = Draws(f"r-{case}", "v") if of.explore is not None and rng.random() < 0.7 else None
        found = selected(of, feed, top_k, draws)
        order = found.order_K.tolist()
        places_relaxed = 0
        for place, row in enumerate(order):
            expected = read_place(of, feed, order[:place], explores=draws is not None)
            assert expected is not None
            places_relaxed += expected.is_relaxed
            assert row in expected.utilities
            if expected.probabilities:
                assert found.propensity_K is not None
                assert draws is not None
                assert found.propensity_K[place] == pytest.approx(expected.probabilities[row], rel=1e-6)
                assert_drawn(expected.probabilities, row, draws.number_of(place), feed, expected.utilities)
                drawn += 1
                continue
            assert found.propensity_K is None or found.propensity_K[place] == 1
            if is_exact:
                assert row == max(expected.utilities, key=lambda one: (expected.utilities[one], feed.scores[one], -one))
            else:
                assert expected.utilities[row] >= max(expected.utilities.values()) - ROUNDING
        assert found.relaxed == places_relaxed
        wanted = len(feed.scores) if top_k is None else min(top_k, len(feed.scores))
        left = set(range(len(feed.scores))) - set(order)
        if len(order) < wanted:
            assert read_place(of, feed, order, explores=False) is None
            assert set(found.dropped.tolist()) == left
        else:
            assert not len(found.dropped)
        relaxed, dropped = relaxed + places_relaxed, dropped + len(found.dropped)
    # Else the cases would say nothing of these.
    assert min(relaxed, dropped, drawn) > 300


def assert_drawn(
    probabilities: dict[int, float], row: int, number: float, feed: Feed, utilities: dict[int, float]
) -> None:
    """The number falls into the row's part of [0, 1), where parts stand by descending score."""
    by_score = sorted(utilities, key=lambda one: (-feed.scores[one], one))
    before = math.fsum(probabilities[one] for one in by_score[: by_score.index(row)])
    assert before - ROUNDING <= number <= before + probabilities[row] + ROUNDING


def test_an_order_holds_each_candidate_once_and_the_cap_holds_in_every_window() -> None:
    rng = np.random.default_rng(8)
    for case in range(300):
        rows, count = int(rng.integers(1, 400)), int(rng.integers(1, 4))
        within = count + int(rng.integers(1, 12))
        otherwise = ["relax", "drop"][case % 2]
        feed = Feed(
            rng.normal(size=rows).tolist(),
            (np.minimum(rng.zipf(1.5, rows), 30) - 2).tolist(),
            rng.normal(size=(rows, 4)).tolist(),
        )
        of = stages(
            cap={"per": "creator", "count": count, "within": within, "else": otherwise},
            mmr={"lambda": 0.7, "head": 20, "by": "id"},
            explore={"temperature": 0.5, "head": 10, "share": 1.0},
        )
        found = selected(of, feed, draws=Draws(str(case), "v") if case % 3 else None)
        assert sorted([*found.order_K, *found.dropped]) == list(range(rows))
        groups = [feed.groups[row] for row in found.order_K]
        # A place breaks the cap where the window that ends there has too many of its own group.
        breaks = sum(
            group >= 0 and groups[max(0, place - within + 1) : place + 1].count(group) > count
            for place, group in enumerate(groups)
        )
        assert breaks == found.relaxed
        assert otherwise == "relax" or (found.relaxed == 0)


def test_mmr_with_lambda_1_is_the_identity() -> None:
    rng = np.random.default_rng(9)
    of = stages(mmr={"lambda": 1, "head": 50, "by": "id"})
    for _ in range(100):
        scores = rng.normal(size=200).round(int(rng.integers(1, 9)))
        feed = Feed(scores.tolist(), [NO_GROUP] * 200, rng.normal(size=(200, 8)).tolist())
        assert selected(of, feed).order_K.tolist() == np.argsort(-scores, kind="stable").tolist()


@pytest.mark.parametrize(
    "scores", [[3.0], [0.0, 0.0, 0.0], [-1e308, 1e308, 0.0], [-5.0, -7.0, -6.0], [5e-324, 0.0, 0.0]]
)
def test_scores_at_the_edges_of_numbers(scores: list[float]) -> None:
    feed = Feed(scores, [0] * len(scores), [[1.0, 0.0]] * len(scores))
    for of in (
        stages(mmr={"lambda": 0.7, "head": 5, "by": "id"}),
        stages(cap={"per": "creator", "count": 1, "within": 3}),
        stages(explore={"temperature": 1e-6, "head": 5, "share": 1}),
    ):
        found = selected(of, feed, draws=Draws("r", "v"))
        assert sorted(found.order_K) == list(range(len(scores)))
        if found.propensity_K is not None:
            assert (found.propensity_K > 0).all()
            assert (found.propensity_K <= 1).all()
    assert selected(stages(mmr={"lambda": 0.7, "head": 5, "by": "id"}), feed, top_k=1).order_K.tolist() == [
        int(np.argmax(scores))
    ]


def test_equal_scores_are_drawn_evenly() -> None:
    of = stages(explore={"temperature": 0.5, "head": 4, "share": 1})
    found = selected(of, Feed([2.0] * 4, [0] * 4, [[1.0]] * 4), draws=Draws("r", "v"))
    assert found.propensity_K is not None
    assert found.propensity_K.tolist() == pytest.approx([1 / 4, 1 / 3, 1 / 2, 1])


def test_frequencies_of_orders_are_the_products_of_the_logged_conditionals() -> None:
    of = stages(
        cap={"per": "creator", "count": 1, "within": 2},
        mmr={"lambda": 0.6, "head": 4, "by": "id"},
        explore={"temperature": 4, "head": 3, "share": 1},
    )
    vectors = [[1.0, 0.2], [0.9, -0.1], [-0.3, 1.0], [0.5, 0.5], [0.0, 1.0]]
    feed = Feed([1.0, 0.8, 0.7, 0.5, 0.3], [0, 0, 1, 1, 2], vectors)
    probabilities = {order[:3]: probability for order, probability in orders(of, feed, ())}
    assert math.fsum(probabilities.values()) == pytest.approx(1)
    counts: Counter[tuple[int, ...]] = Counter()
    num_draws = 20_000
    for number in range(num_draws):
        found = selected(of, feed, draws=Draws(f"request-{number}", "v"))
        order = tuple(found.order_K[:3].tolist())
        assert found.propensity_K is not None
        if order not in counts:
            assert math.prod(found.propensity_K) == pytest.approx(probabilities[order])
        counts[order] += 1
    observed = [counts[order] for order in probabilities]
    expected = [num_draws * probability for probability in probabilities.values()]
    # The ids are fixed, so is the outcome. 1 in 1,000 of other ids would fail.
    assert min(expected) > 5
    assert stats.chisquare(observed, expected).pvalue > 0.001


def orders(of: Select, feed: Feed, before: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every order of three places, with its probability."""
    if len(before) == 3:
        yield before, 1.0
        return
    place = read_place(of, feed, before, explores=True)
    assert place is not None
    for row, probability in place.probabilities.items():
        for order, rest in orders(of, feed, (*before, row)):
            yield order, probability * rest


def test_numbers_of_requests_are_even_and_repeatable() -> None:
    numbers = np.array([[Draws(f"r-{n}", "v").number_of(place) for place in range(3)] for n in range(20_000)])
    for place in range(3):
        assert stats.kstest(numbers[:, place], "uniform").pvalue > 0.001
    for one, other in itertools.combinations(range(3), 2):
        # The correlation of so many independent pairs has a deviation of 1 / sqrt(20,000).
        assert abs(np.corrcoef(numbers[:, one], numbers[:, other])[0, 1]) < 4 / math.sqrt(20_000)
    wins = sum(Draws(f"r-{n}", "v").wins_coin(0.1) for n in range(20_000))
    assert stats.binomtest(wins, 20_000, 0.1).pvalue > 0.001
    assert Draws("r", "v").number_of(3) == Draws("r", "v").number_of(3)
    assert Draws("r", "v").number_of(3) != Draws("r", "w").number_of(3)
    assert not Draws("r", "v").wins_coin(0.0)
    assert Draws("r", "v").wins_coin(1.0)
    assert 0 <= Draws("\ud800", "v").number_of(0) < 1
