"""What a column is like, added up piece by piece in bounded memory: counts of ids, mean and scale, ranks of values.

Every summary takes values (`add`), takes another summary of its kind (`merge`), and is kept as plain arrays (`arrays`,
`restore`). The same pieces in the same order give the same summary, bit for bit.

Bounds, each also measured by the summary itself:
- counts of ids are exact up to `most` distinct ids; beyond that the rarest are dropped and every count left is too low
  by at most `undercount` <= total / (most + 1) (Misra and Gries 1982; merging: Agarwal et al. 2012, "Mergeable
  summaries");
- ranks are exact up to EXACT_VALUES values; beyond that a rank is off by at most `rank_error` values, about
  log2(values / EXACT_VALUES) / COMPACT_VALUES of all of them (Munro and Paterson 1980, with levels as in KLL 2016; it
  draws no random numbers, so that a fit can be repeated).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

MOST_IDS = 10_000_000
EXACT_VALUES = 2**21
COMPACT_VALUES = 2**17
# Ids are pruned once so many more than `most` are held: pruning sorts, and so has to be rare.
_SLACK = 1.25
_TOGETHER = 2**18

Arrays = dict[str, NDArray[Any]]


class IntegerCounts:
    """How often each of the commonest `most` integers occurs, out of `total`."""

    def __init__(self, most: int = MOST_IDS) -> None:
        self.most = most
        self.total = 0
        self._undercount = 0
        self._ids = np.zeros(0, np.int64)
        self._counts = np.zeros(0, np.int64)
        self._waiting: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._num_waiting = 0

    @property
    def undercount(self) -> int:
        """By how much a count may be too low; 0: all are exact."""
        self._settle()
        return self._undercount

    def add(self, values: NDArray[np.int64]) -> None:
        """Counts values."""
        ids, counts = np.unique(values, return_counts=True)
        self._wait(ids, counts, len(values))

    def merge(self, other: Self) -> None:
        """Counts what another has counted."""
        self._undercount += other.undercount
        self._wait(other._ids, other._counts, other.total)

    def entries(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids, ascending, and their counts."""
        self._settle()
        return self._ids, self._counts

    def arrays(self) -> Arrays:
        """All that it holds."""
        ids, counts = self.entries()
        return {"ids": ids, "counts": counts, "total": np.array([self.total, self._undercount])}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Takes the place of what `arrays` was made of."""
        self.total, self._undercount = arrays["total"].tolist()
        self._ids, self._counts = arrays["ids"], arrays["counts"]

    def _wait(self, ids: NDArray[np.int64], counts: NDArray[np.int64], total: int) -> None:
        self.total += total
        self._waiting.append((ids, counts))
        self._num_waiting += len(ids)
        # Sorted into the rest once they are many beside it: every id is then sorted a few times, not at every piece.
        if self._num_waiting > max(_TOGETHER, len(self._ids) // 2):
            self._settle()

    def _settle(self) -> None:
        if self._waiting:
            waiting, self._waiting, self._num_waiting = self._waiting, [], 0
            ids = np.concatenate([self._ids, *(ids for ids, _ in waiting)])
            counts = np.concatenate([self._counts, *(counts for _, counts in waiting)])
            order = ids.argsort(kind="stable")
            ids = ids[order]
            firsts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1])) if len(ids) else np.zeros(0, np.int64)
            self._ids = ids[firsts]
            self._counts = np.add.reduceat(counts[order], firsts) if len(ids) else counts
        if len(self._ids) > self.most * _SLACK:
            cut = _cut(self._counts, self.most)
            kept = self._counts > cut
            self._ids, self._counts = self._ids[kept], self._counts[kept] - cut
            self._undercount += cut


class StringCounts:
    """How often each of the commonest `most` strings occurs, out of `total`."""

    def __init__(self, most: int = MOST_IDS) -> None:
        self.most = most
        self.total = 0
        self.undercount = 0
        self._counts: Counter[str] = Counter()

    def add(self, values: Sequence[str]) -> None:
        """Counts values."""
        self.total += len(values)
        self._counts.update(values)
        self._prune()

    def merge(self, other: Self) -> None:
        """Counts what another has counted."""
        self.total += other.total
        self.undercount += other.undercount
        self._counts.update(other._counts)
        self._prune()

    def entries(self) -> tuple[list[str], NDArray[np.int64]]:
        """Ids, ascending, and their counts."""
        ids = sorted(self._counts)
        return ids, np.fromiter(map(self._counts.__getitem__, ids), np.int64, len(ids))

    def arrays(self) -> Arrays:
        """All that it holds; strings as UTF-8 bytes one after the other."""
        ids, counts = self.entries()
        texts = [text.encode() for text in ids]
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        joined = np.frombuffer(b"".join(texts), np.uint8)
        return {"ids": joined, "lengths": lengths, "counts": counts, "total": np.array([self.total, self.undercount])}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Takes the place of what `arrays` was made of."""
        self.total, self.undercount = arrays["total"].tolist()
        joined = arrays["ids"].tobytes()
        ends = np.cumsum(arrays["lengths"]).tolist()
        ids = (joined[start:end].decode() for start, end in zip([0, *ends], ends, strict=False))
        self._counts = Counter(dict(zip(ids, arrays["counts"].tolist(), strict=True)))

    def _prune(self) -> None:
        if len(self._counts) > self.most * _SLACK:
            cut = _cut(np.fromiter(self._counts.values(), np.int64, len(self._counts)), self.most)
            self._counts = Counter({text: count - cut for text, count in self._counts.items() if count > cut})
            self.undercount += cut


Counts = IntegerCounts | StringCounts


def _cut(counts: NDArray[np.int64], most: int) -> int:
    """The greatest count that does not belong to the `most` commonest."""
    place = len(counts) - most - 1
    return int(np.partition(counts, place)[place])


class Moments:
    """Mean and spread of values; pieces are joined as Chan, Golub and LeVeque (1979) do, without cancellation."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0  # of the differences from the mean, summed

    @property
    def deviation(self) -> float:
        """The standard deviation of the values (divided by their number, not by one less)."""
        return float(np.sqrt(self._squares / self.count))

    def add(self, values: NDArray[np.float64]) -> None:
        """Adds values."""
        if len(values):
            mean = values.mean()
            self._join(len(values), float(mean), float(np.square(values - mean).sum()))

    def merge(self, other: Self) -> None:
        """Adds what another was made of."""
        if other.count:
            self._join(other.count, other.mean, other._squares)

    def arrays(self) -> Arrays:
        """All that it holds."""
        return {"count": np.array([self.count]), "moments": np.array([self.mean, self._squares])}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Takes the place of what `arrays` was made of."""
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


class Ranks:
    """Values by rank. Level l holds values that stand for 2**l each; a level that is full is sorted, and every other
    value of it goes up."""

    def __init__(self, exact: int = EXACT_VALUES, compact: int = COMPACT_VALUES) -> None:
        self._most = (exact, compact)
        self.rank_error = 0
        self._levels: list[list[NDArray[np.float64]]] = [[]]
        self._sizes = [0]
        self._times = [0]

    def add(self, values: NDArray[np.float64]) -> None:
        """Adds values."""
        self._put(0, values)
        self._compact()

    def merge(self, other: Self) -> None:
        """Adds what another was made of."""
        self.rank_error += other.rank_error
        for level, parts in enumerate(other._levels):
            for part in parts:
                self._put(level, part)
        self._compact()

    def weighted(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Values, ascending, and for how many each of them stands."""
        values = np.concatenate([np.zeros(0), *(part for parts in self._levels for part in parts)])
        weights = np.repeat(2 ** np.arange(len(self._sizes)), self._sizes)
        order = values.argsort(kind="stable")
        return values[order], weights[order]

    def arrays(self) -> Arrays:
        """All that it holds."""
        values = np.concatenate([np.zeros(0), *(part for parts in self._levels for part in parts)])
        return {"values": values, "levels": np.array([self._sizes, self._times]), "error": np.array([self.rank_error])}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Takes the place of what `arrays` was made of."""
        self.rank_error, start = int(arrays["error"][0]), 0
        self._levels, self._sizes, self._times = [], [], []
        for level, (size, times) in enumerate(arrays["levels"].T.tolist()):
            self._put(level, arrays["values"][start : start + size])
            self._times[level] = times
            start += size

    def _put(self, level: int, values: NDArray[np.float64]) -> None:
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
                self._put(level + 1, raised)
            level += 1
