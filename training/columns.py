"""Arrow columns as arrays of numbers: labels, masks and weights.

Shapes: B rows.
"""

from typing import cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_NUMBER_KINDS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)


def plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """A dictionary column as its values. A null in the dictionary becomes a null of the column."""
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def floats(values: pa.ChunkedArray) -> NDArray[np.float64]:
    """numbers_B, null as NaN. Raises ValueError for another type."""
    kind = values.type
    if not any(is_kind(kind) for is_kind in _NUMBER_KINDS):
        raise ValueError(f"is {kind}, not a number")
    return cast(NDArray[np.float64], values.cast(pa.float64(), safe=False).to_numpy())
