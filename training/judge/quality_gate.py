"""Quality gate of a challenger: no task may be worse than a champion's, on users who neither chose nor calibrated it.

In: losses by user of the challenger, and of every version that was stable lately, on the same rows. Out: passed or
refused, with reasons and figures. On the same rows the constant's loss is one, so that NE's relative difference (for a
quantity that of its loss over the constant's) is the quotient of two sums of losses, less 1. Its 95 % interval is of a
bootstrap over users (training/metrics/bootstrap.py).

Shapes: U users, R draws of them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from training.judge.settings import QualityGate
from training.judge.users import TaskSums
from training.metrics.bootstrap import Statistic, bootstrap_values, percentile_interval
from training.metrics.metrics import divide
from training.tasks.learned import Floats, LearnedTask
from training.wording import counted

REPLICATES = 1000
_SEED = 0


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """Passed or refused. Reasons are sentences, none where it passed. Figures are JSON."""

    passed: bool
    reasons: tuple[str, ...]
    figures: dict[str, Any] = field(default_factory=dict)


class _Pair(NamedTuple):
    """A champion's version and a task that both answer."""

    champion: str
    task: str


def quality_gate(
    challenger: Mapping[str, TaskSums],
    champions: Mapping[str, Mapping[str, TaskSums]],
    kinds: Mapping[str, LearnedTask],
    settings: QualityGate,
) -> GateVerdict:
    """Gate a challenger against each champion, by version. A task that a champion does not have is not compared.

    Every upper bound must be under `max_worse`, so that none of them needs a correction for the others. Raises
    ValueError where two versions did not answer the same users."""
    reasons = [
        f"task {name}: all labels of the half that gates are alike, so that nothing is to be told of it"
        for name, sums in challenger.items()
        if not sums.constant_loss(kinds[name]).sum() > 0
    ]
    pairs = [
        _Pair(version, task)
        for version, of_version in champions.items()
        for task, sums in of_version.items()
        if task in challenger and sums.constant_loss(kinds[task]).sum() > 0
    ]
    statistics: dict[_Pair, Statistic] = {}
    for pair in pairs:
        own, other = challenger[pair.task], champions[pair.champion][pair.task]
        if not np.array_equal(own.rows_U, other.rows_U):
            raise ValueError(f"version {pair.champion} answered other rows of task {pair.task} than the challenger")
        statistics[pair] = _relative_loss(own.loss_U, other.loss_U)
    users = max((len(sums.rows_U) for sums in challenger.values()), default=0)
    if users < 2:
        return GateVerdict(False, (f"the half that gates has {counted(users, 'user')}; it takes 2 at least",))
    values = bootstrap_values(statistics, users, replicates=REPLICATES, seed=_SEED)
    once = np.ones((1, users))
    figures: dict[str, Any] = {}
    for pair, statistic in statistics.items():
        rows = float(challenger[pair.task].rows_U.sum())
        found = {"difference": float(statistic(once)[0]), "rows": rows, "users": users}
        interval = percentile_interval(values[pair])
        if interval is None:
            reasons.append(
                f"task {pair.task}: too few users have rows of it to compare it with version {pair.champion}"
            )
        else:
            found |= {"low": interval[0], "high": interval[1]}
            reasons += _reasons(pair, found, settings.max_worse)
        figures.setdefault(pair.champion, {})[pair.task] = found
    return GateVerdict(not reasons, tuple(reasons), figures)


def rows_needed(difference: float, high: float, rows: float, max_worse: float) -> int | None:
    """Rows at which the upper bound would be under `max_worse`, None where the difference itself is not. Half-widths
    shrink by the root of the rows."""
    if difference >= max_worse:
        return None
    return math.ceil(rows * ((high - difference) / (max_worse - max(difference, 0.0))) ** 2)


def _relative_loss(own_U: Floats, other_U: Floats) -> Statistic:
    return lambda draws_RU: divide(draws_RU @ own_U, draws_RU @ other_U) - 1


def _reasons(pair: _Pair, found: Mapping[str, float], max_worse: float) -> list[str]:
    difference, low, high = found["difference"], found["low"], found["high"]
    if high < max_worse:
        return []
    said = (
        f"task {pair.task}: NE is {difference:+.2%} against version {pair.champion}, between {low:+.2%} and {high:+.2%}"
    )
    if low > 0 or difference >= max_worse:
        return [f"{said}; at most {max_worse:+.2%} may be"]
    needed = rows_needed(difference, high, found["rows"], max_worse)
    assert needed is not None
    return [f"{said}: too wide to tell by {found['rows']:,.0f} rows; it would take about {needed:,}"]
