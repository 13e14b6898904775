"""Raw values of single features as arrays: ids as words of 64 bits, numbers as they are.

In: a column. Out: arrays. A word is an integer id itself, or the XXH3-64 hash of a string's UTF-8 bytes. Catalogues
keep them of their items, and ranking policies compare candidates by them.

Shapes: B rows, V values.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.features.hashing import hash_strings
from model.features.kinds.columns import Column, Ids

Mask = NDArray[np.bool_]


class Words(NamedTuple):
    """Ids of a feature, `word_B`, and where there is one. Words of null are 0."""

    word_B: Ids
    has_id_B: Mask


def words_of(column: Column | None, rows: int) -> Words:
    """The words of a column of single ids, all null where there is no column."""
    if column is None:
        return Words(np.zeros(rows, np.int64), np.zeros(rows, np.bool_))
    if isinstance(column.values, list):
        word_B = words_of_strings(column.values)
        if column.codes_V is not None:
            word_B = np.append(word_B, np.int64(0))[column.codes_V]
    else:
        word_B = column.values.astype(np.int64, copy=False)
    if column.missing is None:
        return Words(word_B, np.ones(rows, np.bool_))
    return Words(np.where(column.missing, 0, word_B), ~column.missing)


def words_of_strings(values: Sequence[str]) -> Ids:
    """The words of strings."""
    return hash_strings(values).view(np.int64)
