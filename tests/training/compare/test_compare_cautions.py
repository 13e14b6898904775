"""Cautions beside a verdict."""

from typing import Any

from training.compare.cautions import cautions

Json = dict[str, Any]
COSTS: dict[str, Json] = {
    "base": {"parameters": 100_000},
    "same": {"parameters": 149_000},
    "large": {"parameters": 151_000},
}
COUNTS: dict[str, Json] = {"click": {"positives": 100}, "like": {"positives": 99}, "play_time": {}}


def entry(low: float | None, high: float | None, users: tuple[float, float] | None = None) -> Json:
    return {"low": low, "high": high, "users_low": users and users[0], "users_high": users and users[1]}


def auc(**of_click: Json) -> Json:
    return {"click": of_click}


def test_nothing_is_said_of_a_fair_comparison() -> None:
    fair = auc(base=entry(0.6, 0.62, (0.58, 0.64)), same=entry(0.6, 0.62, (0.51, 0.64)))
    assert cautions("same", "base", ["click", "play_time"], COSTS, COUNTS, fair) == []


def test_sizes_more_than_half_again_apart_are_named_in_both_directions() -> None:
    (text,) = cautions("large", "base", ["click"], COSTS, COUNTS, {})
    assert "151,000 dense parameters against 100,000 of base, 1.5 times" in text
    assert len(cautions("base", "large", ["click"], COSTS, COUNTS, {})) == 1
    trees: dict[str, Json] = {**COSTS, "trees": {"parameters": None}}
    assert cautions("trees", "base", ["click"], trees, COUNTS, {}) == []


def test_few_positives_are_counted() -> None:
    (text,) = cautions("same", "base", ["click", "like"], COSTS, COUNTS, {})
    assert text.startswith("like has 99 positives")


def test_a_task_at_chance_is_named_by_seeds_or_by_users() -> None:
    over_seeds = auc(base=entry(0.49, 0.52), same=entry(0.6, 0.7))
    assert "of base contains" in cautions("same", "base", ["click"], COSTS, COUNTS, over_seeds)[0]
    over_users = auc(base=entry(0.6, 0.7, (0.49, 0.8)), same=entry(None, None, (0.45, 0.9)))
    assert "of same and base contains" in cautions("same", "base", ["click"], COSTS, COUNTS, over_users)[0]
