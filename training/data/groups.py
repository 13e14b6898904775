"""Groups of rows, the users of GAUC and of the bootstrap: by the value of the column that data.group_by names.

Rows without a value are one group, as they are for SQL. Groups whose rows stay together in training are those of
data.together, where each row without a value is one. Every fault is a ValueError.

Shapes: B rows.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from training.columns import plain

# Code of a row that is in no group with others.
ALONE = -1
# What a column names, by its key in the training file.
_NAMED = {"group_by": "users", "together": "groups of rows"}


def group_codes(table: pa.Table, group_by: str | None) -> NDArray[Any]:
    """The group of every row, as codes: that of its value, null being one, or the row itself without a column."""
    if group_by is None:
        return np.arange(table.num_rows)
    column = plain(table.column(group_by))
    refuse_ungroupable(column.type, group_by)
    return np.asarray(column.combine_chunks().dictionary_encode(null_encoding="encode").indices)


def codes_together(table: pa.Table, together: str) -> NDArray[np.int64]:
    """Codes of the groups of data.together, the same for a value in every part of a log: a hash of it. A row without a
    value has ALONE."""
    column = plain(table.column(together))
    refuse_ungroupable(column.type, together, "together")
    coded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    values = [
        ALONE if value is None else xxhash.xxh3_64_intdigest(str(value).encode("utf-8", "surrogatepass")) >> 1
        for value in coded.dictionary.to_pylist()
    ]
    codes_B: NDArray[np.int64] = np.array(values, np.int64)[np.asarray(coded.indices)]
    return codes_B


def rows_without_group(table: pa.Table, group_by: str | None) -> int:
    """Rows that have no value of the column."""
    return 0 if group_by is None else int(plain(table.column(group_by)).null_count)


def refuse_ungroupable(kind: pa.DataType, column: str, key: str = "group_by") -> None:
    """Raise ValueError for a type whose values do not name groups, by the key that names the column."""
    try:
        pa.array([], kind).dictionary_encode()
    except pa.ArrowNotImplementedError:
        raise ValueError(f"data.{key}: column '{column}' of type {kind} does not name {_NAMED[key]}") from None
