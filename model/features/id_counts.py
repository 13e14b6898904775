"""Counts of ids, made piece by piece in bounded memory.

Counts are exact up to `most` distinct ids. Beyond that either the rarest ids are dropped, and every count left is too
low by at most `undercount` <= total / (most + 1) (Misra and Gries 1982, merging: Agarwal et al. 2012, "Mergeable
summaries"). Or, `sampled`, the ids of a share of all hashes are kept and their counts stay exact (Wegman's adaptive
sampling: Flajolet 1990), so that the number of distinct ids is known to about 1 / sqrt(most / 2).

Counts take values (`add`), take other counts (`merge`), and are kept as plain arrays (`arrays`, `restore`). The same
pieces in the same order give the same counts.

Shapes: V values of a column.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model.features.hashing import hash_integers, hash_strings

MOST_IDS = 10_000_000
# Ids are pruned once so many more than `most` are kept: pruning sorts, and so has to be rare.
_SLACK = 1.25
_TOGETHER = 2**18

Arrays = dict[str, NDArray[Any]]


class IntegerCounts:
    """Counts of the commonest, or of a sample of, `most` integers, out of `total`."""

    def __init__(self, most: int = MOST_IDS, *, sampled: bool = False) -> None:
        self.most = most
        self.sampled = sampled
        self.total = 0
        self._halvings = 0
        self._undercount = 0
        self._ids = np.zeros(0, np.int64)
        self._counts = np.zeros(0, np.int64)
        self._waiting: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._num_waiting = 0

    @property
    def undercount(self) -> int:
        """Largest error of a count, which is too low by it at most. 0: all are exact."""
        self._prune()
        return self._undercount

    @property
    def halvings(self) -> int:
        """Number of halvings of the sample: ids of a share 2**-halvings of all hashes are kept."""
        self._prune()
        return self._halvings

    def add(self, values: NDArray[np.int64]) -> None:
        """Counts values."""
        ids, counts = np.unique(values, return_counts=True)
        self._wait(ids, counts, len(values))

    def merge(self, other: Self) -> None:
        """Count what another has counted."""
        self._undercount += other.undercount
        self.thin_out(other.halvings)
        self._wait(other._ids, other._counts, other.total)

    def entries(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids, ascending, and their counts."""
        self._prune()
        return self._ids, self._counts

    def arrays(self) -> Arrays:
        """All of its state."""
        ids, counts = self.entries()
        return {"ids": ids, "counts": counts, "total": np.array([self.total, self._undercount, self._halvings])}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Become what `arrays` was made of."""
        self.total, self._undercount, self._halvings = arrays["total"].tolist()
        self._ids, self._counts = arrays["ids"], arrays["counts"]

    def _wait(self, ids: NDArray[np.int64], counts: NDArray[np.int64], total: int) -> None:
        self.total += total
        if self._halvings:
            kept = _is_in_sample(hash_integers(ids), self._halvings)
            ids, counts = ids[kept], counts[kept]
        self._waiting.append((ids, counts))
        self._num_waiting += len(ids)
        # Sorted into the rest once they are many beside it: every id is then sorted a few times, not at every piece.
        if self._num_waiting > max(_TOGETHER, len(self._ids) // 2):
            self._prune()

    def _sort_in(self) -> None:
        if self._waiting:
            waiting, self._waiting, self._num_waiting = self._waiting, [], 0
            ids = np.concatenate([self._ids, *(ids for ids, _ in waiting)])
            counts = np.concatenate([self._counts, *(counts for _, counts in waiting)])
            order = ids.argsort(kind="stable")
            ids = ids[order]
            firsts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1])) if len(ids) else np.zeros(0, np.int64)
            self._ids = ids[firsts]
            self._counts = np.add.reduceat(counts[order], firsts) if len(ids) else counts

    def _prune(self) -> None:
        self._sort_in()
        while len(self._ids) > self.most * _SLACK:
            if self.sampled:
                self.thin_out(self._halvings + 1)
                continue
            cut = _cut(self._counts, self.most)
            kept = self._counts > cut
            self._ids, self._counts = self._ids[kept], self._counts[kept] - cut
            self._undercount += cut

    def thin_out(self, halvings: int) -> None:
        """Halves the sample until it was halved so often."""
        if halvings > self._halvings:
            self._halvings = halvings
            self._sort_in()
            kept = _is_in_sample(hash_integers(self._ids), halvings)
            self._ids, self._counts = self._ids[kept], self._counts[kept]


class StringCounts:
    """Counts of the commonest, or of a sample of, `most` strings, out of `total`."""

    def __init__(self, most: int = MOST_IDS, *, sampled: bool = False) -> None:
        self.most = most
        self.sampled = sampled
        self.halvings = 0
        self.total = 0
        self.undercount = 0
        self._counts: Counter[str] = Counter()

    def add(self, values: Sequence[str]) -> None:
        """Counts values."""
        self.total += len(values)
        self._take(Counter(values) if self.halvings else values)

    def add_coded(self, values: Sequence[str], codes_V: NDArray[np.int32]) -> None:
        """Count the values that `codes_V` say, each its place among `values`."""
        self.total += len(codes_V)
        counted: Counter[str] = Counter()
        for value, count in zip(values, np.bincount(codes_V, minlength=len(values)).tolist(), strict=True):
            if count:
                counted[value] += count
        self._take(counted)

    def merge(self, other: Self) -> None:
        """Count what another has counted."""
        self.total += other.total
        self.undercount += other.undercount
        self.thin_out(other.halvings)
        self._take(other._counts)

    def entries(self) -> tuple[list[str], NDArray[np.int64]]:
        """Ids, ascending, and their counts."""
        ids = sorted(self._counts)
        return ids, np.fromiter(map(self._counts.__getitem__, ids), np.int64, len(ids))

    def arrays(self) -> Arrays:
        """All of its state, strings as UTF-8 bytes one after the other."""
        ids, counts = self.entries()
        texts = [text.encode() for text in ids]
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        joined = np.frombuffer(b"".join(texts), np.uint8)
        total = np.array([self.total, self.undercount, self.halvings])
        return {"ids": joined, "lengths": lengths, "counts": counts, "total": total}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Become what `arrays` was made of."""
        self.total, self.undercount, self.halvings = arrays["total"].tolist()
        joined = arrays["ids"].tobytes()
        ends = np.cumsum(arrays["lengths"]).tolist()
        ids = (joined[start:end].decode() for start, end in zip([0, *ends], ends, strict=False))
        self._counts = Counter(dict(zip(ids, arrays["counts"].tolist(), strict=True)))

    def _take(self, values: Sequence[str] | Counter[str]) -> None:
        if self.halvings and isinstance(values, Counter):
            values = _sample(values, self.halvings)
        self._counts.update(values)
        while len(self._counts) > self.most * _SLACK:
            if self.sampled:
                self.thin_out(self.halvings + 1)
                continue
            cut = _cut(np.fromiter(self._counts.values(), np.int64, len(self._counts)), self.most)
            self._counts = Counter({text: count - cut for text, count in self._counts.items() if count > cut})
            self.undercount += cut

    def thin_out(self, halvings: int) -> None:
        """Halves the sample until it was halved so often."""
        if halvings > self.halvings:
            self.halvings = halvings
            self._counts = _sample(self._counts, halvings)


Counts = IntegerCounts | StringCounts


def _sample(counts: Counter[str], halvings: int) -> Counter[str]:
    texts = list(counts)
    kept = _is_in_sample(hash_strings(texts), halvings)
    return Counter({text: counts[text] for text in compress(texts, kept)})


def _is_in_sample(hashes: NDArray[np.uint64], halvings: int) -> NDArray[np.bool_]:
    """Mask of the hashes whose first `halvings` bits (at least one) are 0."""
    is_in: NDArray[np.bool_] = hashes >> np.uint64(64 - halvings) == 0
    return is_in


def _cut(counts: NDArray[np.int64], most: int) -> int:
    """The greatest count that does not belong to the `most` commonest."""
    place = len(counts) - most - 1
    return int(np.partition(counts, place)[place])
