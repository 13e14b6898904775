"""Values of Arrow columns of the usual types (usual_types.py), as numpy has them.

Every fault is a ValueError. One in rows is a `RowFault`, which says which rows.

Shapes: B rows, V values of lists.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.features.kinds.columns import ID_LIMITS, Column, Dtype
from training.columns import plain
from training.data.bad_rows import Mask, RowFault

NOT_TEXT = "text that is not valid UTF-8"
_STRING_KINDS = (pa.types.is_string, pa.types.is_large_string)


def is_text(kind: pa.DataType) -> bool:
    """True for a type of strings."""
    return any(is_kind(kind) for is_kind in _STRING_KINDS)


def not_text(values: pa.Array) -> list[int]:
    """The places of strings that are not valid UTF-8."""
    places = []
    for place, content in enumerate(values.cast(pa.large_binary()).to_pylist()):
        try:
            content.decode()
        except UnicodeDecodeError:
            places.append(place)
    return places


def refuse_other_text(values: pa.ChunkedArray) -> None:
    """Raise RowFault for text that is not UTF-8. That of features is checked where it is decoded."""
    values = plain(values)
    try:
        for chunk in values.chunks:
            chunk.validate(full=True)
    except pa.ArrowInvalid:
        encoded = values.combine_chunks().dictionary_encode()
        codes_B = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
        raise RowFault(NOT_TEXT, np.isin(codes_B, not_text(encoded.dictionary))) from None


def ids_of(
    dtype: Dtype | None,
    values: pa.ChunkedArray,
    given: pa.DataType,
    lengths_B: NDArray[np.int64] | None = None,
    *,
    is_coded: bool,
) -> Column:
    """Ids of a column of type `given`, which are in lists of the given lengths if any, of each string once if
    `is_coded`. Raises ValueError for a type that has no ids of the dtype, and RowFault for an id beyond it."""
    kind = values.type
    if not (pa.types.is_integer(kind) if dtype == "int64" else is_text(kind)) and not pa.types.is_null(kind):
        one, many = ("an integer", "integers") if dtype == "int64" else ("a string", "strings")
        needs = f"{one} column" if lengths_B is None else f"lists of {many}"
        raise ValueError(f"is {given}, an id of dtype {dtype} needs {needs}")
    missing = values.is_null().to_numpy() if values.null_count else None
    if pa.types.is_null(kind):
        empty: list[str] | NDArray[np.int64] = (
            [""] * len(values) if dtype == "string" else np.zeros(len(values), np.int64)
        )
        return Column(empty, missing, lengths_B)
    if dtype == "int64":
        try:
            return Column(pc.fill_null(values.cast(pa.int64()), 0).to_numpy(), missing, lengths_B)
        except pa.ArrowInvalid:
            is_bad_V: Mask = pc.fill_null(pc.greater(values, pa.scalar(ID_LIMITS[1], kind)), False).to_numpy()
            raise RowFault("an id beyond int64", _rows_of(is_bad_V, lengths_B)) from None
    # One Python string per distinct value: rows share it, at any length of the column.
    encoded = pc.fill_null(values.cast(pa.string()), "").combine_chunks().dictionary_encode()
    try:
        strings = encoded.dictionary.to_pylist()
    except UnicodeDecodeError:
        is_bad_V = np.isin(encoded.indices.to_numpy(), not_text(encoded.dictionary))
        raise RowFault(NOT_TEXT, _rows_of(is_bad_V, lengths_B)) from None
    column = Column(strings, missing, lengths_B, encoded.indices.to_numpy())
    return column if is_coded else column.decoded()


def _rows_of(is_bad_V: Mask, lengths_B: NDArray[np.int64] | None) -> Mask:
    """The rows of values, which are in lists of the given lengths if any."""
    if lengths_B is None:
        return is_bad_V
    is_bad_B = np.zeros(len(lengths_B), bool)
    is_bad_B[np.repeat(np.arange(len(lengths_B)), lengths_B)[is_bad_V]] = True
    return is_bad_B
