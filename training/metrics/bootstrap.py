"""Bootstrap over users: how far a metric would move, had other users been logged.

Impressions of one user depend on each other. Drawing users with replacement, and taking all impressions of a drawn
user, keeps that dependence. Drawing rows would give intervals that are too narrow. In: statistics as functions of how
often each group was drawn. Out: percentile intervals, or none, with the reason.

Shapes: R draws, G groups.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
# Takes the times that each group was drawn, float64 [replicates, groups], gives one value per replicate, NaN where it
# is undefined.
Statistic = Callable[[Floats], Floats]
Name = TypeVar("Name", bound=Hashable)

NO_ROWS = "no rows"
# An interval read from the few replicates in which a rare task has a positive would be too narrow and say
# nothing about it.
MIN_DEFINED_SHARE = 0.95
# Draws kept at once, as float64: 32 MB.
CHUNK_CELLS = 4_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """One metric: its value, and the interval [low, high]. What is None has its `reason`."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


def bootstrap_values(
    statistics: Mapping[Name, Statistic], num_groups: int, *, replicates: int, seed: int
) -> dict[Name, Floats]:
    """Values [replicates] of each statistic under resampling of whole groups with replacement.

    Impressions of one user depend on each other. Drawing users, not rows, keeps that dependence, and
    intervals come out as wide as they should be. A draw is kept as the number of times each group came up.
    One seed gives one sequence of draws, so two models on the same groups can be compared pair by pair.
    Raises ValueError for arguments out of range.
    """
    if replicates < 1 or num_groups < 2:
        raise ValueError(
            f"a bootstrap needs replicates >= 1 and 2 groups or more; got replicates {replicates}, groups {num_groups}"
        )
    rng = np.random.default_rng(seed)
    chunk = max(1, min(replicates, CHUNK_CELLS // num_groups))
    values: dict[Name, list[Floats]] = {name: [] for name in statistics}
    for start in range(0, replicates, chunk):
        count = min(chunk, replicates - start)
        draws = [np.bincount(rng.integers(0, num_groups, num_groups), minlength=num_groups) for _ in range(count)]
        draws_RG = np.stack(draws).astype(np.float64)
        for name, statistic in statistics.items():
            values[name].append(statistic(draws_RG))
    return {name: np.concatenate(parts) for name, parts in values.items()}


def percentile_interval(values_R: Floats, level: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval (low, high) of a statistic's replicates, NaN where undefined. None where fewer than 95 % of
    them are defined. Raises ValueError for a level out of range."""
    if not 0 < level < 1:
        raise ValueError(f"a level is between 0 and 1; got {level}")
    defined = values_R[~np.isnan(values_R)]
    if defined.size < MIN_DEFINED_SHARE * values_R.size:
        return None
    tail = (1 - level) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def estimates(
    statistics: Mapping[str, Statistic],
    num_groups: int,
    undefined: Mapping[str, str],
    replicates: int,
    seed: int,
    level: float,
) -> dict[str, Estimate]:
    """Each statistic on the sample itself (every group drawn once), with its interval.

    `undefined` says, per statistic, why its value can be NaN. `replicates` 0 leaves the intervals out.
    """
    if num_groups == 0:
        return {name: Estimate(None, reason=NO_ROWS) for name in statistics}
    once = np.ones((1, num_groups))
    points = {name: float(statistic(once)[0]) for name, statistic in statistics.items()}
    intervals: dict[str, tuple[float, float] | None] = {}
    missing = "no bootstrap was asked for" if replicates == 0 else "an interval needs 2 groups or more"
    if replicates != 0 and num_groups > 1:
        defined = {name: statistics[name] for name, point in points.items() if not np.isnan(point)}
        values = bootstrap_values(defined, num_groups, replicates=replicates, seed=seed)
        intervals = {name: percentile_interval(values_R, level) for name, values_R in values.items()}
        missing = f"undefined in more than {1 - MIN_DEFINED_SHARE:.0%} of the bootstrap replicates"
    found: dict[str, Estimate] = {}
    for name, point in points.items():
        interval = intervals.get(name)
        if np.isnan(point):
            found[name] = Estimate(None, reason=undefined.get(name, NO_ROWS))
        elif interval is None:
            found[name] = Estimate(point, reason=missing)
        else:
            found[name] = Estimate(point, *interval)
    return found
