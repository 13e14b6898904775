"""Policies: against loops that follow their definition, and by the properties of each stage."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from model.features.kinds.columns import Column
from model.features.raw_values import Words
from model.policies.candidates import CandidateValues
from model.policies.place import Placed, Placing
from model.policies.policies import Policies, Policy
from model.policies.stages import Decay, first_of_each
from model.schema import FeedSchema
from model.value_models.answer_domain import AnswerDomain
from tests.artifacts import tiny_schema
from tests.model.policies.slow_policy import place_slowly

CASES = 10_000
NOW = 1_000_000.0
DOMAIN = AnswerDomain.of_answers({"click": [1.0], "like": [1.0], "play_time": [1.0]})
DTYPES: dict[str, Any] = {"video_id": "int64", "tag": "string", "duration_ms": None}
FEATURES = {feature.name: feature for feature in tiny_schema().requested("candidate")}
TESTS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "duration_ms >= 3000": lambda row: row["duration_ms"] >= 3000,
    "click > 0.25 or like <= 0.5": lambda row: row["click"] > 0.25 or row["like"] <= 0.5,
    "not video_id == 3": lambda row: row["video_id"] != 3,
    "video_id != 3": lambda row: row["video_id"] is not None and row["video_id"] != 3,
    "1000 < duration_ms <= 31000 / (1 + like)": lambda row: 1000 < row["duration_ms"] <= 31000 / (1 + row["like"]),
    "log(duration_ms) > 8.5": lambda row: row["duration_ms"] > math.exp(8.5),
}


class Past(NamedTuple):
    """An entry of a history."""

    value: object
    time: float


def policy_of(definition: Mapping[str, Any], schema: FeedSchema | None = None) -> Policy:
    content = yaml.safe_dump({"one": definition}).encode()
    return Policies.from_bytes(content, "policies.yaml", schema or tiny_schema(), DOMAIN)["one"]


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    return {name: FEATURES[name].column([row[name] for row in rows], dtype) for name, dtype in DTYPES.items()}


def placed(
    policy: Policy,
    rows: Sequence[Mapping[str, Any]],
    seen: Mapping[str, Sequence[Past]] | None = None,
    top_k: int | None = None,
) -> Placed:
    answers = {name: np.array([row[name] for row in rows], np.float32) for name in ("click", "like")}
    values = CandidateValues(policy.readable, columns_of(rows), [row["id"] for row in rows])
    score_N = np.array([row["score"] for row in rows], np.float64)
    return policy.place(
        Placing(score_N, answers, values, seen or {}, lambda _: np.zeros((0, 0), np.float32), NOW, top_k, "r-1")
    )


def row_of(score: float, **others: Any) -> dict[str, Any]:
    return {"id": "a", "video_id": None, "tag": None, "duration_ms": 0.0, "click": 0.0, "like": 0.0, "score": score} | {
        **others
    }


def random_rows(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Rows whose numbers are few and sums of powers of two: ties are frequent, and nothing is rounded."""
    return [
        {
            "id": f"c{rng.integers(6)}",
            "video_id": [None, 0, 2, 3, -5, 2**53 + 1][rng.integers(6)],
            "tag": [None, "x", "y", "naïve", ""][rng.integers(5)],
            "duration_ms": [None, 0.0, 2000.0, 3000.0, 8000.0, 31000.5][rng.integers(6)],
            "click": float(rng.integers(5)) / 4,
            "like": float(rng.integers(3)) / 2,
            "score": float(rng.integers(-8, 9)) / 8,
        }
        for _ in range(rng.integers(1, 14))
    ]


def random_policy(rng: np.random.Generator) -> dict[str, Any]:
    def some(values: list[str], most: int) -> list[str]:
        return [values[n] for n in rng.permutation(len(values))[: rng.integers(0, most + 1)]]

    ids = ["video_id", "tag", "id"]
    policy: dict[str, Any] = {"filter": some(list(TESTS), 2), "dedup": some(ids, 2)}
    if rng.random() < 0.5:
        policy["seen"] = {"field": "seen_items", "by": ids[rng.integers(3)], "within": "24h"}
    conditions = some(list(TESTS), 2)
    policy["boost"] = [{"when": text, "multiply": [0.0, 0.5, 1.5, 4.0][rng.integers(4)]} for text in conditions]
    if rng.random() < 0.5:
        factor, floor = [0.0, 0.5, 1.0][rng.integers(3)], [0.0, 0.25, 1.0][rng.integers(3)]
        policy["decay"] = {"per": ids[rng.integers(3)], "factor": factor, "floor": floor}
    if rng.random() < 0.5:
        count = int(rng.integers(1, 3))
        within = count + int(rng.integers(1, 4))
        cap = {
            "per": ids[rng.integers(2)],
            "count": count,
            "within": within,
            "else": ["relax", "drop"][rng.integers(2)],
        }
        policy["select"] = {"cap": cap}
    return policy


def test_random_policies_place_as_loops_do() -> None:
    rng = np.random.default_rng(18)
    told: Counter[str] = Counter()
    definitions = [random_policy(rng) for _ in range(CASES // 25)]
    policies = [policy_of(definition) for definition in definitions]
    for number in range(CASES):
        definition, rows = definitions[number % len(definitions)], random_rows(rng)
        seen = [
            ([3, "3", "x", "naïve", "c1", None, 2**70, "1e3"][rng.integers(8)], NOW - 3600 * rng.integers(20, 28))
            for _ in range(rng.integers(0, 5))
        ]
        top_k = None if rng.random() < 0.5 else int(rng.integers(1, 9))
        as_used = [{**row, "duration_ms": row["duration_ms"] or 0.0} for row in rows]
        by = definition.get("seen", {}).get("by")
        as_integers = [(3 if value == "3" and by == "video_id" else value, time) for value, time in seen]
        expected = place_slowly(definition, TESTS, as_used, as_integers, NOW, top_k)
        got = placed(policies[number % len(policies)], rows, {"seen_items": [Past(*entry) for entry in seen]}, top_k)
        assert got.order_K.tolist() == expected.order, (definition, rows)
        assert {stage: sorted(lost.tolist()) for stage, lost in got.dropped.items()} == {
            stage: sorted(lost) for stage, lost in expected.dropped.items()
        }
        assert got.relaxed == expected.relaxed
        told.update(got.dropped.keys())
        told["relaxed"] += bool(got.relaxed)
        told["none left"] += not len(got.order_K)
    # Each of these was met often enough to have been compared.
    assert all(told[what] > 100 for what in ("filter", "seen", "dedup", "cap", "relaxed", "none left")), told


FLOATS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
SCORES = st.lists(FLOATS, min_size=1, max_size=30)
SHARES = st.floats(0, 1, allow_subnormal=False)
CREATORS = st.lists(st.integers(0, 3) | st.none(), min_size=30, max_size=30)
EVERYTHING = {
    "boost": [{"when": "duration_ms > 0", "multiply": 3.0}],
    "decay": {"per": "video_id", "factor": 0.5, "floor": 0.1},
}


@given(SCORES, CREATORS)
@settings(deadline=None)
def test_an_order_has_each_kept_candidate_once(scores: list[float], creators: list[int | None]) -> None:
    rows = [row_of(score, video_id=creators[n], duration_ms=float(n % 2)) for n, score in enumerate(scores)]
    definition = {**EVERYTHING, "filter": ["not video_id == 2"], "dedup": ["video_id"]}
    got = placed(policy_of(definition), rows)
    everything = [*got.order_K.tolist(), *(row for lost in got.dropped.values() for row in lost.tolist())]
    assert sorted(everything) == list(range(len(rows)))


@given(SCORES, CREATORS, FLOATS)
@settings(deadline=None)
def test_stages_that_change_nothing_leave_the_order_of_scores(
    scores: list[float], creators: list[int | None], score: float
) -> None:
    """Also where scores are all equal, or all negative."""
    neutral = {
        "filter": ["duration_ms >= 0"],
        "seen": {"field": "never", "by": "video_id", "within": "24h"},
        "boost": [{"when": "duration_ms >= 0", "multiply": 1}],
        "decay": {"per": "video_id", "factor": 0.3, "floor": 1},
        "select": {"cap": {"per": "tag", "count": 1, "within": 2}},
    }
    for given_scores in (scores, [score] * len(scores), [-abs(one) for one in scores]):
        rows = [row_of(one, video_id=creators[n]) for n, one in enumerate(given_scores)]
        got = placed(policy_of(neutral), rows)
        assert got.order_K.tolist() == sorted(range(len(rows)), key=lambda n: (-rows[n]["score"], n))
        assert not got.dropped
        assert not got.relaxed


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=30), CREATORS, st.integers(-1000, 1000))
@settings(deadline=None)
def test_a_constant_added_to_all_scores_changes_no_order(
    scores: list[int], creators: list[int | None], added: int
) -> None:
    def order(shift: int) -> list[np.intp]:
        rows = [row_of(score + shift, video_id=creators[n], duration_ms=float(n % 3)) for n, score in enumerate(scores)]
        return list(placed(policy_of(EVERYTHING), rows).order_K)

    assert order(0) == order(added)


@given(st.lists(st.floats(0, 2.0**100, allow_subnormal=False), min_size=1, max_size=30), CREATORS, SHARES, SHARES)
@settings(deadline=None)
def test_decay_is_monotone(utilities: list[float], creators: list[int | None], factor: float, floor: float) -> None:
    """Within a creator the better one keeps the larger factor, nothing is raised, and the best is left as it is."""
    decay = Decay(per="video_id", factor=factor, floor=floor)
    chosen = creators[: len(utilities)]
    words = Words(np.array([one or 0 for one in chosen]), np.array([one is not None for one in chosen]))
    factors = decay.factors(np.array(utilities), words).tolist()
    assert all(floor <= one <= 1 for one in factors)
    for creator in set(chosen):
        of_it = [n for n, one in enumerate(chosen) if one == creator]
        by_utility = [factors[n] for n in sorted(of_it, key=lambda n: -utilities[n])]
        if creator is None:
            assert set(by_utility) == {1.0}
        else:
            assert by_utility[0] == 1.0
            assert by_utility == sorted(by_utility, reverse=True)


@given(st.lists(st.tuples(st.integers(0, 3) | st.none(), st.integers(0, 2) | st.none()), min_size=1, max_size=20))
@settings(deadline=None)
def test_dedup_is_idempotent(pairs: list[tuple[int | None, int | None]]) -> None:
    def words(chosen: list[tuple[int | None, int | None]]) -> list[Words]:
        columns = zip(*chosen, strict=True)
        return [Words(np.array([x or 0 for x in one]), np.array([x is not None for x in one])) for one in columns]

    kept = [pair for pair, is_kept in zip(pairs, first_of_each(words(pairs)).tolist(), strict=True) if is_kept]
    whole = [pair for pair in kept if None not in pair]
    assert len(whole) == len(set(whole))
    assert set(kept) == set(pairs)
    assert first_of_each(words(kept)).all()


def test_histories_count_until_they_are_too_old_and_ids_are_the_same_as_digits() -> None:
    policy = policy_of({"seen": {"field": "seen_items", "by": "video_id", "within": "2h"}})
    rows = [row_of(5 - n, video_id=video) for n, video in enumerate([1, 2, 3, 4, None])]
    entries = [
        Past(1, NOW - 7200),
        Past("2", NOW),
        Past(3, NOW - 7201),
        Past("4.0", NOW),
        Past(None, NOW),
        Past([4], NOW),
    ]
    assert placed(policy, rows, {"seen_items": entries}).order_K.tolist() == [2, 3, 4]
    assert placed(policy, rows, {"other": entries}).order_K.tolist() == [0, 1, 2, 3, 4]


def test_places_say_where_each_candidate_stood_after_a_stage() -> None:
    policy = policy_of(
        {
            "filter": ["duration_ms > 0"],
            "boost": [{"when": "click > 0.5", "multiply": 3}],
            "select": {"cap": {"per": "video_id", "count": 1, "within": 2}},
        }
    )
    rows = [
        row_of(4.0, video_id=1, duration_ms=1.0),
        row_of(9.0, video_id=1),
        row_of(3.0, video_id=1, duration_ms=1.0, click=1.0),
        row_of(1.0, video_id=2, duration_ms=1.0),
    ]
    # Less 1: 3, 2 x 3 and 0. The cap puts the last before the second of one creator.
    got = placed(policy, rows)
    assert got.order_K.tolist() == [2, 3, 0]
    places = {stage: place_K.tolist() for stage, place_K in got.places().items()}
    assert places == {"score": [1, 2, 0], "boost": [0, 2, 1], "select": [0, 1, 2]}
    assert {stage: lost.tolist() for stage, lost in got.dropped.items()} == {"filter": [1]}
