"""Groups of rows, the users of GAUC and of the bootstrap: by the value of the column that data.group_by names.

Rows without a value are one group, as they are for SQL. Every fault is a ValueError.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training.columns import plain


def group_codes(table: pa.Table, group_by: str | None) -> NDArray[Any]:
    """The group of every row, as codes: that of its value, null being one, or the row itself without a column."""
    if group_by is None:
        return np.arange(table.num_rows)
    column = plain(table.column(group_by))
    refuse_ungroupable(column.type, group_by)
    return np.asarray(column.combine_chunks().dictionary_encode(null_encoding="encode").indices)


def rows_without_group(table: pa.Table, group_by: str | None) -> int:
    """Rows that have no value of the column."""
    return 0 if group_by is None else int(plain(table.column(group_by)).null_count)


def refuse_ungroupable(kind: pa.DataType, group_by: str) -> None:
    """Raise ValueError for a type whose values do not name groups."""
    try:
        pa.array([], kind).dictionary_encode()
    except pa.ArrowNotImplementedError:
        raise ValueError(f"data.group_by: column '{group_by}' of type {kind} does not name users") from None
