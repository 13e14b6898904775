"""Statistics of a key (a user, a video, a pair of both) over the days before an impression's own day.

Everything an impression's inputs know about labels comes through here, so the rule that no row sees its own label,
its own day or the future is kept in one place: a total at day d sums events of days < d.

Days are indices 0..num_days - 1 in time order. Keys are indices 0..num_keys - 1 or -1 for "no key" (an unknown tag),
for which every total is 0.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Events:
    """Things that happened to keys on days: key [N] and day [N]."""

    key: Integers
    day: Integers


def totals_before(rows: Events, events: Events, values: Floats | None, num_keys: int, num_days: int) -> Floats:
    """For each row [N], the sum of `values` [M] (None: the number) of the events of its key on days before its day."""
    known = events.key >= 0
    cell = (events.key * num_days + events.day)[known]
    weights = None if values is None else values[known]
    per_day = np.bincount(cell, weights, num_keys * num_days).astype(np.float64).reshape(num_keys, num_days)
    # Shifted, not the running sum less the day's own: that would let the day into the last bits.
    before = np.zeros_like(per_day)
    np.cumsum(per_day[:, :-1], axis=1, out=before[:, 1:])
    return np.where(rows.key >= 0, before[np.maximum(rows.key, 0), rows.day], 0.0)


def smoothed_rate(total: Floats, count: Floats, prior: Floats, strength: float) -> Floats:
    """Posterior mean (total + strength * prior) / (count + strength), [N]. NaN where the prior is NaN.

    `strength` is how many impressions the prior is worth, as the parameter sum of a Beta prior.
    """
    return (total + strength * prior) / (count + strength)


def mean_by_group_before(group: Integers, day: Integers, values: Floats, num_days: int) -> Floats:
    """For each row [N], the mean of `values` over its group's rows on earlier days.

    A group new on its day takes the mean over all rows of earlier days. NaN on the first day that has rows.
    """
    everything = Events(np.zeros(len(day), dtype=np.int64), day)
    count = totals_before(everything, everything, None, 1, num_days)
    total = totals_before(everything, everything, values, 1, num_days)
    overall = np.divide(total, count, out=np.full(len(day), np.nan), where=count > 0)
    index, num_groups = key_index(group)
    rows = Events(index, day)
    count = totals_before(rows, rows, None, num_groups, num_days)
    total = totals_before(rows, rows, values, num_groups, num_days)
    mean: Floats = np.divide(total, count, out=overall, where=count > 0)
    return mean


def last_day_before(rows: Events, events: Events, num_keys: int, num_days: int) -> Integers:
    """For each row [N], the latest day before its own on which its key had an event. -1 where there is none."""
    latest = np.full((num_keys, num_days), -1, dtype=np.int64)
    known = events.key >= 0
    later = known & (events.day < num_days - 1)
    latest[events.key[later], events.day[later] + 1] = events.day[later]
    latest = np.maximum.accumulate(latest, axis=1)
    return np.where(rows.key >= 0, latest[np.maximum(rows.key, 0), rows.day], -1)


def key_index(*columns: Integers) -> tuple[Integers, int]:
    """Number the distinct rows of the columns [N] from 0. Returns the index of each row and their number.

    A row with a negative value in any column has no key: -1.
    """
    known = np.logical_and.reduce([column >= 0 for column in columns])
    combined = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        span = int(column.max(initial=0)) + 1
        # Renumber at each step, so that the product never leaves 64 bits.
        combined = np.unique(combined * span + np.maximum(column, 0), return_inverse=True)[1]
    distinct, index = np.unique(combined[known], return_inverse=True)
    result = np.full(len(combined), -1, dtype=np.int64)
    result[known] = index
    return result, len(distinct)
