"""A histogram for what every request observes: values are kept, and counted many at once.

In: values and arrays of them. Out: what prometheus_client's own histogram exports, as of the last `flush`.

Shapes: V values of a label set.
"""

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Histogram

# Values or arrays of them: some megabytes at the most, where every request has as many candidates as it may have.
_MOST_WAITING = 256


class BatchedHistogram(Histogram):
    """A histogram that keeps observed values until `flush`, then counts them in one pass in C. Counting one value by
    itself costs as much as encoding a whole column. One label set observes either single values, arrays or matrices."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._columns: Sequence[BatchedHistogram] = ()
        self._bounds_of_float32 = _at_most(tuple(self._upper_bounds))
        self._waiting: deque[float | NDArray[np.floating]] = deque()

    def observe_matrices(self, others: Sequence["BatchedHistogram"]) -> None:
        """Observe matrices from now on: the first column here, each other column in one of the others."""
        self._columns = (self, *others)

    def observe_soon(self, observed: float | NDArray[np.floating]) -> None:
        """Observes a value, or every value of an array or a matrix, at the next flush."""
        self._waiting.append(observed)
        if len(self._waiting) >= _MOST_WAITING:
            self.flush()

    def flush(self) -> None:
        """Count what waits, in every label set."""
        if self._is_parent():  # type: ignore[no-untyped-call]
            children: list[Any] = list(self._metrics.values())
            for child in children:
                child.flush()
            return
        waiting = []
        with suppress(IndexError):  # drained by two threads at once, each value is still taken by one
            while True:
                waiting.append(self._waiting.popleft())
        if not waiting:
            return
        values = np.concatenate(waiting) if isinstance(waiting[0], np.ndarray) else np.array(waiting)
        if values.ndim == 1:
            self._observe_all(values)
            return
        for histogram, values_V in zip(self._columns, np.ascontiguousarray(values.T), strict=True):
            histogram._observe_all(values_V)

    def _observe_all(self, values: NDArray[np.floating]) -> None:
        bounds = self._bounds_of_float32 if values.dtype == np.float32 else self._upper_bounds
        # A pass for each of some twenty bounds takes a tenth of the time of a search for each value.
        counts = np.diff([np.count_nonzero(values <= bound) for bound in bounds], prepend=0)
        self._sum.inc(float(values.sum(dtype=np.float64)))
        for bucket in np.flatnonzero(counts).tolist():
            self._buckets[bucket].inc(int(counts[bucket]))


@lru_cache
def _at_most(bounds: tuple[float, ...]) -> list[np.float32]:
    """For each bound the largest float32 that is not above it: numpy compares a float32 with no float64."""
    nearest = np.array(bounds, np.float32)
    is_above = nearest.astype(np.float64) > np.array(bounds)
    return list(np.where(is_above, np.nextafter(nearest, np.float32(-np.inf)), nearest))
