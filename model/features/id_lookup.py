"""Raw ids -> rows of their embedding table, vectorised: hashed buckets and vocabularies.

Row 0 is the OOV row: no bucket has it, and an id that is not in a vocabulary takes it.

In a table with two hashes an id has a row in each of two halves. Both travel as one number, `first * half_rows +
second`, from here to the embeddings (model/embeddings/embeddings.py in training, model/export/embedding_rows.py in
scoring), so that everything between has one number an id. A missing id is 0, the OOV rows of both. The second hash
is SplitMix64's finaliser over the 64 bits of the first.

An id of a table with slots is a word: the integer itself, or a string's hash. Which words have a row is known at the
end of training, and then they are the table's vocabulary. Until then ids have no row: they travel as words with 0 for
a missing one (`unplaced`), and the embeddings find their rows (model/embeddings/id_map.py).

Shapes: V values of a column.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from model.features.fitted import FittedFeatures
from model.features.hashing import hash_integers, hash_strings, take_buckets
from model.features.kinds.columns import ID_LIMITS, Column, Ids, Values
from model.schema import Table

__all__ = ["OOV_ROW", "Lookup", "hash_integers", "hash_strings", "lookup_of", "take_buckets", "words_of"]

OOV_ROW = 0
# Stands for a missing id among words: the one int64 that is never given a slot.
NO_WORD = ID_LIMITS[1]


# A vocabulary of integers that lie so close is a table of them all: looked up in one step instead of by bisection.
_DENSE = 65_536


@dataclass(frozen=True, slots=True)
class Lookup:
    """Raw values -> table rows, for one table."""

    rows: int
    find: Callable[[Values], Ids]
    # Set where integers are hashed: such look-ups of a block can be done in one go.
    integer_buckets: int | None = None
    # Whether what it finds are ids without a row yet.
    is_unplaced: bool = False

    def __call__(self, column: Column) -> Ids:
        ids = self.find(column.values)
        if column.codes_V is not None:
            ids = ids[column.codes_V]
        if column.missing is not None:
            ids[column.missing] = OOV_ROW
        return ids


def lookup_of(table: Table, fitted: FittedFeatures, *, in_training: bool = False) -> Lookup:
    """The look-up of a table. `in_training`, ids of a table with slots have no row unless their vocabulary is there.
    Raises ValueError where a fitted vocabulary is absent."""
    if table.slots is not None:
        return _words_lookup(table.slots, table.name, fitted, in_training=in_training)
    if table.buckets is not None:
        buckets = table.buckets
        if table.hashes == 2:
            return Lookup(2 * (buckets + 1), lambda values: _pairs(values, buckets))
        of_integers = buckets if table.dtype == "int64" else None
        return Lookup(buckets + 1, lambda values: _bucket_rows(values, buckets), of_integers)
    entries = fitted.vocabularies.get(table.name, ()) if table.vocabulary == "fitted" else table.vocabulary
    if not entries:
        raise ValueError(f"table '{table.name}': its fitted vocabulary is absent from the fitted features")
    if table.dtype == "string":
        row_of = {entry: row for row, entry in enumerate(entries, start=1)}
        return Lookup(
            len(row_of) + 1,
            lambda values: np.fromiter(map(row_of.get, values, repeat(OOV_ROW)), np.int64, len(values)),
        )
    return _vocabulary_lookup(np.asarray(entries, np.int64))


def _words_lookup(slots: int, name: str, fitted: FittedFeatures, *, in_training: bool) -> Lookup:
    held = fitted.vocabularies.get(name)
    if held is None and in_training:
        return Lookup(slots + 1, lambda values: unplaced(words_of(values)), is_unplaced=True)
    if held is None:
        raise ValueError(f"table '{name}': the ids that have its slots are absent from the fitted features")
    if not held:
        return Lookup(1, lambda values: np.full(len(values), OOV_ROW, np.int64))
    of_words = _vocabulary_lookup(np.asarray(held, np.int64))
    return Lookup(of_words.rows, lambda values: of_words.find(words_of(values)))


def _vocabulary_lookup(entries: Ids) -> Lookup:
    """The look-up of integers in a vocabulary, whose rows count from 1."""
    order = np.argsort(entries, kind="stable")
    sorted_entries, entry_rows = entries[order], order + 1
    low, high = int(sorted_entries[0]), int(sorted_entries[-1])
    if high - low < _DENSE and ID_LIMITS[0] < low and high < ID_LIMITS[1]:
        # A row for each value from one below the least to one above the greatest: these two are for all beyond them.
        rows = np.zeros(high - low + 3, np.int64)
        rows[sorted_entries - (low - 1)] = entry_rows
        return Lookup(len(entries) + 1, lambda values: _dense_rows(values, rows, low - 1, high + 1))
    return Lookup(len(entries) + 1, lambda values: _vocabulary_rows(values, sorted_entries, entry_rows))


def words_of(values: Values) -> Ids:
    """Word of an id of a table with slots: the integer itself, or a string's hash."""
    return hash_strings(values).view(np.int64) if isinstance(values, list) else values.astype(np.int64, copy=False)


def unplaced(words: Ids) -> Ids:
    """Words as they travel: NO_WORD is 0. The same again gives the words."""
    return words ^ NO_WORD


def _hashed(values: Values) -> NDArray[np.uint64]:
    return hash_strings(values) if isinstance(values, list) else hash_integers(values)  # type: ignore[arg-type]


def _bucket_of(hashed: NDArray[np.uint64], buckets: int) -> Ids:
    return (hashed % np.uint64(buckets)).astype(np.int64) + 1


def _bucket_rows(values: Values, buckets: int) -> Ids:
    return _bucket_of(_hashed(values), buckets)


def _pairs(values: Values, buckets: int) -> Ids:
    hashed = _hashed(values)
    # At most (2**31 - 1)**2: a pair of any two halves is an int64.
    return _bucket_of(hashed, buckets) * (buckets + 1) + _bucket_of(hash_integers(hashed.view(np.int64)), buckets)


def _dense_rows(values: Values, rows: Ids, low: int, high: int) -> Ids:
    found: Ids = rows[np.clip(values, low, high) - low]
    return found


def _vocabulary_rows(values: Values, sorted_entries: Ids, rows: Ids) -> Ids:
    found = np.minimum(np.searchsorted(sorted_entries, values), len(sorted_entries) - 1)
    return np.where(sorted_entries[found] == values, rows[found], OOV_ROW)
