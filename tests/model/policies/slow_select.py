"""Selection as its definition says it, place by place in plain loops, for tests.

An order is read along: at each place the utility of every candidate that may stand there is computed from scratch."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from model.policies.select_stages import Select


class Place(NamedTuple):
    """Candidates of a place: utilities by row, the probability of each, and whether the cap had to be relaxed."""

    utilities: dict[int, float]
    probabilities: dict[int, float]
    is_relaxed: bool


class Feed(NamedTuple):
    """The candidates of a request."""

    scores: Sequence[float]
    groups: Sequence[int]
    vectors: Sequence[Sequence[float]]


def read_place(stages: Select, feed: Feed, before: Sequence[int], *, explores: bool) -> Place | None:
    """The next place after those. None where the cap drops what is left."""
    left = [row for row in range(len(feed.scores)) if row not in before]
    allowed = [row for row in left if _has_room(stages, feed, before, row)]
    if not allowed and stages.cap is not None and stages.cap.otherwise == "drop":
        return None
    rows = allowed or left
    utilities = {row: _utility(stages, feed, before, row) for row in rows}
    probabilities: dict[int, float] = {}
    if explores and stages.explore is not None and len(before) < stages.explore.head:
        weights = _softmax_weights(stages, feed, utilities)
        probabilities = {row: weight / math.fsum(weights.values()) for row, weight in weights.items()}
    return Place(utilities, probabilities, not allowed)


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Cosine of two vectors, 0 where one has no length."""
    lengths = math.hypot(*one) * math.hypot(*other)
    return 0.0 if lengths == 0 else sum(a * b for a, b in zip(one, other, strict=True)) / lengths


def scaled(scores: Sequence[float]) -> list[float]:
    """Min-max scores."""
    least, greatest = min(scores), max(scores)
    return [0.0 if greatest == least else (score - least) / (greatest - least) for score in scores]


def _has_room(stages: Select, feed: Feed, before: Sequence[int], row: int) -> bool:
    if stages.cap is None or feed.groups[row] < 0:
        return True
    window = before[max(0, len(before) - stages.cap.within + 1) :]
    return [feed.groups[one] for one in window].count(feed.groups[row]) < stages.cap.count


def _utility(stages: Select, feed: Feed, before: Sequence[int], row: int) -> float:
    score = scaled(feed.scores)[row]
    if stages.mmr is None or len(before) >= stages.mmr.head:
        return score
    nearest = max((cosine(feed.vectors[row], feed.vectors[one]) for one in before), default=0.0)
    return stages.mmr.weight * score - (1 - stages.mmr.weight) * nearest


def _softmax_weights(stages: Select, feed: Feed, utilities: dict[int, float]) -> dict[int, float]:
    assert stages.explore is not None
    first = sorted((_utility(stages, feed, [], row) for row in range(len(feed.scores))), reverse=True)
    deviation = statistics.pstdev(first[: stages.explore.head])
    best = max(utilities.values())
    if deviation == 0:
        return {row: float(utility == best) for row, utility in utilities.items()}
    scale = stages.explore.temperature * deviation
    return {row: math.exp((utility - best) / scale) for row, utility in utilities.items()}
