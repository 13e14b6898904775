"""Summary of a column of numbers, added up piece by piece in bounded memory: mean and scale, ranks of values, the
largest of them.

Every summary takes values (`add`), takes another summary of its kind (`merge`), and is kept as plain arrays (`arrays`,
`restore`). The same pieces in the same order give the same summary, bit for bit.

RankSketch are exact up to EXACT_VALUES values. Beyond that a rank is off by at most `rank_error` values, about
log2(values / EXACT_VALUES) / COMPACT_VALUES of all of them (Munro and Paterson 1980, with levels as in KLL 2016). It
draws no random numbers, so that a fit can be repeated.
"""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model.features.id_counts import Arrays

EXACT_VALUES = 2**21
COMPACT_VALUES = 2**17
LARGEST_KEPT = 10


class Moments:
    """Mean and spread of values. Parts are joined as by Chan, Golub and LeVeque (1979), without cancellation."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0  # of the differences from the mean, summed

    @property
    def deviation(self) -> float:
        """The standard deviation of the values (divided by their number, not by one less)."""
        return float(np.sqrt(self._squares / self.count))

    def add(self, values: NDArray[np.float64]) -> None:
        """Add values."""
        if len(values):
            mean = values.mean()
            self._join(len(values), float(mean), float(np.square(values - mean).sum()))

    def merge(self, other: Self) -> None:
        """Add what another was made of."""
        if other.count:
            self._join(other.count, other.mean, other._squares)

    def arrays(self) -> Arrays:
        """All of its state."""
        return {"count": np.array([self.count]), "moments": np.array([self.mean, self._squares])}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Become what `arrays` was made of."""
        [self.count] = arrays["count"].tolist()
        self.mean, self._squares = arrays["moments"].tolist()

    def _join(self, count: int, mean: float, squares: float) -> None:
        if not self.count:
            self.count, self.mean, self._squares = count, mean, squares
            return
        total = self.count + count
        apart = mean - self.mean
        self.mean += apart * (count / total)
        self._squares += squares + apart * apart * (self.count / total) * count
        self.count = total


class Largest:
    """The LARGEST_KEPT largest values, repeats included."""

    def __init__(self) -> None:
        self._values = np.zeros(0)  # ascending

    def upper_bound(self) -> float:
        """The largest value, or ten times the tenth largest where that is less and not 0. Raises ValueError without a
        value.

        Nine absurd values (1e30 for an unknown one) do not move it. A rare value, as purchases are among zeros, is not
        cut."""
        if not len(self._values):
            raise ValueError("no value, so there is no largest one")
        largest = float(self._values[-1])
        tenth = float(self._values[-LARGEST_KEPT]) if len(self._values) == LARGEST_KEPT else 0.0
        return min(largest, LARGEST_KEPT * tenth) if tenth > 0 else largest

    def add(self, values: NDArray[np.float64]) -> None:
        """Add values."""
        if len(values) > LARGEST_KEPT:
            values = np.partition(values, -LARGEST_KEPT)[-LARGEST_KEPT:]
        self._values = np.sort(np.concatenate([self._values, values]))[-LARGEST_KEPT:]

    def merge(self, other: Self) -> None:
        """Add what another was made of."""
        self.add(other._values)

    def arrays(self) -> Arrays:
        """All of its state."""
        return {"values": self._values}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Become what `arrays` was made of."""
        self._values = arrays["values"]


class RankSketch:
    """Values by rank. Level l has values that stand for 2**l each. A full level is sorted, and every other value of it
    goes up."""

    def __init__(self, exact: int = EXACT_VALUES, compact: int = COMPACT_VALUES) -> None:
        self._most = (exact, compact)
        self.rank_error = 0
        self._levels: list[list[NDArray[np.float64]]] = [[]]
        self._sizes = [0]
        self._times = [0]

    def add(self, values: NDArray[np.float64]) -> None:
        """Add values."""
        self._add_to_level(0, values)
        self._compact()

    def merge(self, other: Self) -> None:
        """Add what another was made of."""
        self.rank_error += other.rank_error
        for level, parts in enumerate(other._levels):
            for part in parts:
                self._add_to_level(level, part)
        self._compact()

    def weighted(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Values, ascending, and their counts."""
        values = np.concatenate([np.zeros(0), *(part for parts in self._levels for part in parts)])
        weights = np.repeat(2 ** np.arange(len(self._sizes)), self._sizes)
        order = values.argsort(kind="stable")
        return values[order], weights[order]

    def arrays(self) -> Arrays:
        """All of its state."""
        values = np.concatenate([np.zeros(0), *(part for parts in self._levels for part in parts)])
        return {"values": values, "levels": np.array([self._sizes, self._times]), "error": np.array([self.rank_error])}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Become what `arrays` was made of."""
        self.rank_error, start = int(arrays["error"][0]), 0
        self._levels, self._sizes, self._times = [], [], []
        for level, (size, times) in enumerate(arrays["levels"].T.tolist()):
            self._add_to_level(level, arrays["values"][start : start + size])
            self._times[level] = times
            start += size

    def _add_to_level(self, level: int, values: NDArray[np.float64]) -> None:
        while len(self._levels) <= level:
            self._levels.append([])
            self._sizes.append(0)
            self._times.append(0)
        self._levels[level].append(values)
        self._sizes[level] += len(values)

    def _compact(self) -> None:
        level = 0
        while level < len(self._levels):
            if self._sizes[level] > self._most[level > 0]:
                values = np.sort(np.concatenate(self._levels[level]))
                even = len(values) // 2 * 2
                # The lower and the upper of each pair in turn, so that errors of a level cancel.
                raised = values[self._times[level] % 2 : even : 2].copy()
                self._levels[level], self._sizes[level] = [values[even:].copy()], len(values) - even
                self._times[level] += 1
                self.rank_error += 2**level
                self._add_to_level(level + 1, raised)
            level += 1
