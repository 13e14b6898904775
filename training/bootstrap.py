"""Bootstrap over users: how far a metric would move, had other users been logged.

Impressions of one user depend on each other. Drawing users with replacement, and taking all impressions of a
drawn user, keeps that dependence; drawing rows would give intervals that are too narrow. In: statistics as
functions of how often each group was drawn. Out: percentile intervals, or none, with the reason.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
# Takes the times that each group was drawn, float64 [replicates, groups], gives one value per replicate; NaN
# where it is undefined.
Statistic = Callable[[Floats], Floats]

NO_ROWS = "no rows"
# An interval read from the few replicates in which a rare task has a positive would be too narrow and say
# nothing about it.
MIN_DEFINED_SHARE = 0.95
# Draws held at once, as float64: 32 MB.
CHUNK_CELLS = 4_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """One metric: its value, and the interval [low, high]. What is None has its `reason`."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


def bootstrap_intervals(
    statistics: Mapping[str, Statistic], num_groups: int, *, replicates: int, seed: int, level: float = 0.95
) -> dict[str, tuple[float, float] | None]:
    """Percentile intervals (low, high) under resampling of whole groups with replacement.

    Impressions of one user depend on each other; drawing users, not rows, keeps that dependence, and
    intervals come out as wide as they should be. A draw is kept as the number of times each group came up.
    One seed gives one sequence of draws, so two models on the same groups can be compared pair by pair: give
    the difference as a statistic.

    None stands where fewer than 95 % of the replicates define the statistic. Raises ValueError for arguments
    out of range.
    """
    if replicates < 1 or not 0 < level < 1 or num_groups < 2:
        raise ValueError(
            f"a bootstrap needs replicates >= 1, a level between 0 and 1 and 2 groups or more; "
            f"got replicates {replicates}, level {level}, groups {num_groups}"
        )
    rng = np.random.default_rng(seed)
    chunk = max(1, min(replicates, CHUNK_CELLS // num_groups))
    values: dict[str, list[Floats]] = {name: [] for name in statistics}
    for start in range(0, replicates, chunk):
        count = min(chunk, replicates - start)
        draws = [np.bincount(rng.integers(0, num_groups, num_groups), minlength=num_groups) for _ in range(count)]
        draws_RG = np.stack(draws).astype(np.float64)
        for name, statistic in statistics.items():
            values[name].append(statistic(draws_RG))
    tail = (1 - level) / 2
    intervals: dict[str, tuple[float, float] | None] = {}
    for name, parts in values.items():
        defined = np.concatenate(parts)
        defined = defined[~np.isnan(defined)]
        if defined.size < MIN_DEFINED_SHARE * replicates:
            intervals[name] = None
        else:
            low, high = np.quantile(defined, [tail, 1 - tail])
            intervals[name] = (float(low), float(high))
    return intervals


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
        intervals = bootstrap_intervals(defined, num_groups, replicates=replicates, seed=seed, level=level)
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
