"""Distance of two rankings of the same candidates, and its means over many requests.

In: scores before and after, in request order. Out: Kendall's rank correlation of the two rankings, how many of the
best candidates they share, and whether another candidate comes first. Ties are broken by request order, as in
answers, so a ranking is a permutation.

Shapes: N candidates.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.base.ranking import ranking

TOP = (1, 5, 10)
_Z_95 = 1.959964


class Movement(NamedTuple):
    """One request. `kendall_tau` is 1 for the same order and -1 for the reverse, None of a single candidate. `overlaps`
    are shares of the best k, one for each of TOP (of all, where there are fewer)."""

    kendall_tau: float | None
    overlaps: tuple[float, ...]
    first_changes: bool


def movement(before_N: NDArray[np.float64], after_N: NDArray[np.float64]) -> Movement:
    """The movement between two scorings of N candidates."""
    before, after = ranking(before_N, None), ranking(after_N, None)
    rows = len(before)
    place_N = np.empty(rows, np.int64)
    place_N[after] = np.arange(rows)
    pairs = rows * (rows - 1) // 2
    overlaps = tuple(len(np.intersect1d(before[:k], after[:k])) / min(k, rows) for k in TOP)
    tau = 1.0 - 2.0 * inversions(place_N[before]) / pairs if pairs else None
    return Movement(tau, overlaps, bool(before[0] != after[0]))


def inversions(places_N: NDArray[np.int64]) -> int:
    """Pairs of a permutation of 0..N-1 that are in descending order, counted while merging sorted runs."""
    size = 1 << max(0, len(places_N) - 1).bit_length()
    run = np.concatenate([places_N, np.arange(len(places_N), size)])
    width, found = 1, 0
    while width < size:
        pairs_of_runs = run.reshape(-1, 2 * width)
        order = np.argsort(pairs_of_runs, axis=1)
        # An element of a left run has as many smaller ones in its right run as it moves back in the merge.
        places = np.nonzero(order < width)[1]
        found += int(places.sum()) - len(pairs_of_runs) * (width * (width - 1) // 2)
        run = np.take_along_axis(pairs_of_runs, order, axis=1).ravel()
        width *= 2
    return found


@dataclass(slots=True)
class Mean:
    """A mean over requests, taken in one by one (Welford 1962)."""

    count: int = 0
    value: float = 0.0
    _squares: float = 0.0

    def add(self, value: float) -> None:
        """Add the value of one request."""
        self.count += 1
        step = value - self.value
        self.value += step / self.count
        self._squares += step * (value - self.value)

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval, by the normal approximation. None of fewer than two requests."""
        if self.count < 2:
            return None
        return _Z_95 * math.sqrt(self._squares / (self.count - 1) / self.count)

    def document(self) -> dict[str, Any]:
        """For JSON: mean, low and high end of the interval, requests. Nulls where there are too few."""
        half = self.half_width
        return {
            "mean": self.value if self.count else None,
            "low": None if half is None else self.value - half,
            "high": None if half is None else self.value + half,
            "requests": self.count,
        }


@dataclass(slots=True)
class Shift:
    """Mean values before and after, and of their difference request by request."""

    before: Mean
    after: Mean
    shift: Mean

    @classmethod
    def empty(cls) -> "Shift":
        """A sum without values."""
        return cls(Mean(), Mean(), Mean())

    def add(self, before_N: NDArray[np.float64] | None, after_N: NDArray[np.float64] | None) -> None:
        """Add one request's values. None where that side does not have them."""
        if before_N is not None:
            self.before.add(float(before_N.mean()))
        if after_N is not None:
            self.after.add(float(after_N.mean()))
        if before_N is not None and after_N is not None:
            self.shift.add(float(after_N.mean()) - float(before_N.mean()))

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {part: getattr(self, part).document() for part in ("before", "after", "shift")}
