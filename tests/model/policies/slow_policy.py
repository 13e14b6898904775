"""A policy as docs/policies.md says it, candidate by candidate in plain loops, for tests."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from model.policies.select_stages import Select
from tests.model.policies.slow_select import Feed, read_place

# A condition as the file has it, and as Python has it of a candidate.
Test = tuple[str, Callable[[Mapping[str, Any]], bool]]


class Outcome(NamedTuple):
    """The rows in the order answered, those dropped by stage, and how often the cap was relaxed."""

    order: list[int]
    dropped: dict[str, list[int]]
    relaxed: int


def place_slowly(
    policy: Mapping[str, Any],
    tests: Mapping[str, Callable[[Mapping[str, Any]], bool]],
    rows: Sequence[Mapping[str, Any]],
    seen: Sequence[tuple[Any, float]],
    now: float,
    top_k: int | None,
) -> Outcome:
    """The outcome for candidates `rows`, each with its `score`, features and answers."""
    least = min(row["score"] for row in rows)
    left = sorted(range(len(rows)), key=lambda n: (-rows[n]["score"], n))
    dropped: dict[str, list[int]] = {}

    def keep(stage: str, kept: list[int]) -> None:
        nonlocal left
        gone = [n for n in left if n not in kept]
        if gone:
            dropped[stage] = gone
        left = kept

    if policy.get("filter"):
        keep("filter", [n for n in left if all(tests[text](rows[n]) for text in policy["filter"])])
    if "seen" in policy:
        hours = int(policy["seen"]["within"].removesuffix("h"))
        known = {value for value, time in seen if time >= now - 3600 * hours}
        keep("seen", [n for n in left if rows[n][policy["seen"]["by"]] not in known - {None}])
    if policy.get("dedup"):
        kept: list[int] = []
        for n in left:
            key = [rows[n][name] for name in policy["dedup"]]
            if None in key or key not in [[rows[k][name] for name in policy["dedup"]] for k in kept]:
                kept.append(n)
        keep("dedup", kept)
    has_factors = bool(policy.get("boost")) or "decay" in policy
    utility = {n: rows[n]["score"] - (least if has_factors else 0) for n in left}
    for boost in policy.get("boost", []):
        for n in left:
            if tests[boost["when"]](rows[n]):
                utility[n] *= boost["multiply"]
    if "decay" in policy:
        decay = policy["decay"]
        by_utility = sorted(left, key=lambda n: -utility[n])
        counts: dict[Any, int] = {}
        for n in by_utility:
            creator = rows[n][decay["per"]]
            if creator is None:
                continue
            k = counts.get(creator, 0)
            counts[creator] = k + 1
            utility[n] *= max(decay.get("floor", 0.0), decay["factor"] ** k)
    if "select" not in policy or not left:
        return Outcome(sorted(left, key=lambda n: -utility[n])[:top_k], dropped, 0)
    return _select(Select.model_validate(policy["select"]), rows, left, utility, dropped, top_k)


def _select(
    stages: Select,
    rows: Sequence[Mapping[str, Any]],
    left: list[int],
    utility: Mapping[int, float],
    dropped: dict[str, list[int]],
    top_k: int | None,
) -> Outcome:
    assert stages.cap is not None
    creators = [rows[n][stages.cap.per] for n in left]
    codes = {creator: code for code, creator in enumerate(dict.fromkeys(creators))}
    groups = [-1 if creator is None else codes[creator] for creator in creators]
    feed = Feed([utility[n] for n in left], groups, [])
    picked: list[int] = []
    relaxed = 0
    while len(picked) < min(len(left), math.inf if top_k is None else top_k):
        place = read_place(stages, feed, picked, explores=False)
        if place is None:
            dropped["cap"] = [n for position, n in enumerate(left) if position not in picked]
            break
        relaxed += place.is_relaxed
        best = max(place.utilities.values())
        picked.append(min((row for row, value in place.utilities.items() if value == best)))
    return Outcome([left[position] for position in picked], dropped, relaxed)
