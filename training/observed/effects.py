"""Effects of a newer version by days since users' exposure: labels a user, against the version beside it.

In: a joined folder, and two versions that answered in the same days. Out: for each day since exposure and each output
the relative difference of labels a user, with bounds that hold at every look (training/judge/sequences.py).

Shapes: U users.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from model.schema import FeedSchema
from training.judge.observations import Question, observe
from training.judge.sequences import Moments, relative_difference
from training.judge.verdict import MIN_USERS
from training.observed.figures import Interval, Observed, Part

DAY = timedelta(days=1)
MOST_DAYS = 7
# Each side's, of two. Bounds are narrowest where they tell a difference of 5 %.
ALPHA, WIDTH = 0.025, 0.05


@dataclass(frozen=True, slots=True)
class Pair:
    """Two versions that answered on the same day, the newer one first, and since when both do."""

    newer: str
    older: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Effect:
    """Relative difference of an output's labels a user, so many days after exposure. None where it is not defined."""

    day: int
    output: str
    users: tuple[int, int]
    difference: Interval | None


def pair_of(observed: Observed) -> Pair | None:
    """The two versions with most rows on the newest day that two versions answered. None without such a day."""
    for day in sorted({part.day for part in observed.parts}, reverse=True):
        rows: Counter[str] = Counter()
        for part in observed.parts:
            if part.day == day:
                rows[part.version] += _rows(part)
        if len(rows) < 2:
            continue
        two = [version for version, _ in rows.most_common(2)]
        # Of two that began in the same hour the smaller one is the canary.
        older, newer = sorted(two, key=lambda version: (observed.begins[version], -rows[version]))
        return Pair(newer, older, observed.begins[newer])
    return None


def effects_of(folder: Path | str, schema: FeedSchema, pair: Pair) -> list[Effect]:
    """Effects by day since exposure, as far as both arms have users who were seen so long."""
    found: list[Effect] = []
    for day in range(MOST_DAYS):
        question = Question(pair.newer, pair.older, pair.since, None, DAY, {}, after=day * DAY)
        arms = observe(folder, schema, question)
        users = (len(arms.canary.values_U), len(arms.stable.values_U))
        if min(users) < MIN_USERS:
            break
        for output in schema.outputs:
            moments = [Moments.of_values(arm.labels[output]) for arm in (arms.canary, arms.stable)]
            bounds = relative_difference(moments[0], moments[1], alpha=(ALPHA, ALPHA), width=(WIDTH, WIDTH))
            values = Interval(float(bounds.estimate), float(bounds.lower), float(bounds.upper))
            found.append(Effect(day, output, users, values if all(map(math.isfinite, values)) else None))
    return found


def outputs_of(effects: Sequence[Effect]) -> list[str]:
    """Outputs that effects are of, in their order."""
    return list(dict.fromkeys(effect.output for effect in effects))


def _rows(part: Part) -> int:
    return round(max((task.rows for task in part.tasks.values()), default=0.0))
