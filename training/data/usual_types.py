"""Arrow's many types for one thing -> the few that training computes with, once, where a part of a log is read.

Views of strings and lists become the types with offsets, extension types what they are stored as, decimals without
places int64 and other decimals float64. A decimal that its type cannot represent is a fault of its row, and null.

Shapes: B rows.
"""

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.features.kinds.columns import ID_LIMITS
from training.data.bad_rows import Mask, RowFault

# A float64 gives back any decimal of so many digits.
_FLOAT_DIGITS = 15


def usual_type(kind: pa.DataType) -> pa.DataType:
    """The usual type of `kind`: itself, where it is usual."""
    if isinstance(kind, pa.BaseExtensionType):
        return usual_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        values = usual_type(kind.value_type)
        return kind if values == kind.value_type else values
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_decimal(kind):
        return pa.int64() if kind.scale <= 0 else pa.float64()
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(usual_type(kind.value_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        values = usual_type(kind.value_type)
        return kind if values == kind.value_type else pa.large_list(values)
    return kind


def usual(values: pa.ChunkedArray) -> tuple[pa.ChunkedArray, RowFault | None]:
    """A column as its usual type, and its rows that this type cannot represent, which are null."""
    kind = values.type
    wanted = usual_type(kind)
    if wanted == kind:
        return values, None
    if isinstance(kind, pa.BaseExtensionType):
        stored = pa.chunked_array([chunk.storage for chunk in values.chunks], kind.storage_type)
        return usual(stored)
    if pa.types.is_dictionary(kind):
        return usual(values.cast(kind.value_type))
    if pa.types.is_decimal(kind):
        return _integers(values) if kind.scale <= 0 else _floats(values)
    return _lists(values) if pa.types.is_nested(kind) else (values.cast(wanted), None)


def usual_table(table: pa.Table) -> tuple[pa.Table, dict[str, RowFault]]:
    """A table whose columns have their usual types, and by column the rows that its type cannot represent."""
    faults: dict[str, RowFault] = {}
    for place, field in enumerate(table.schema):
        if usual_type(field.type) != field.type:
            values, fault = usual(table.column(place))
            table = table.set_column(place, field.name, values)
            if fault is not None:
                faults[field.name] = fault
    return table, faults


def _lists(values: pa.ChunkedArray) -> tuple[pa.ChunkedArray, RowFault | None]:
    # Put together from their elements: Arrow's cast of views takes those in another order for empty.
    lengths_B = pc.fill_null(pc.list_value_length(values), 0).to_numpy().astype(np.int64)
    elements, fault = usual(pc.list_flatten(values))
    offsets = pa.array(np.append(0, np.cumsum(lengths_B)))
    nulls = _whole(values.is_null()) if values.null_count else None
    lists = pa.LargeListArray.from_arrays(offsets, _whole(elements), mask=nulls)
    if fault is not None:
        is_bad_B: Mask = np.zeros(len(lists), bool)
        is_bad_B[np.repeat(np.arange(len(lists)), lengths_B)[fault.is_bad_B]] = True
        fault = RowFault(fault.rule, is_bad_B)
    return pa.chunked_array([lists]), fault


def _whole(values: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)


def _integers(values: pa.ChunkedArray) -> tuple[pa.ChunkedArray, RowFault | None]:
    try:
        return values.cast(pa.int64()), None
    except pa.ArrowInvalid:
        low, high = (pa.scalar(Decimal(limit), pa.decimal256(76, 0)) for limit in ID_LIMITS)
        wide = values.cast(pa.decimal256(76, 0))
        is_bad = pc.fill_null(pc.or_(pc.less(wide, low), pc.greater(wide, high)), False)
        rule = "a decimal beyond int64; write an id as string, a number as double"
        kept = pc.if_else(is_bad, pa.scalar(None, values.type), values)
        return kept.cast(pa.int64()), RowFault(rule, is_bad.to_numpy())


def _floats(values: pa.ChunkedArray) -> tuple[pa.ChunkedArray, RowFault | None]:
    # By way of text: Arrow's own cast does not give the nearest float.
    texts = values.cast(pa.string())
    numbers = texts.cast(pa.float64())
    if values.type.precision <= _FLOAT_DIGITS:
        return numbers, None
    # The shortest text that gives the float back is the decimal's unless digits are lost, or has an exponent.
    differs = pc.not_equal(_trimmed(texts), _trimmed(numbers.cast(pa.string())))
    is_bad_B: Mask = pc.fill_null(differs, False).to_numpy().copy()
    for row in np.flatnonzero(is_bad_B).tolist():
        is_bad_B[row] = Decimal(repr(numbers[row].as_py())) != values[row].as_py()
    if not is_bad_B.any():
        return numbers, None
    rule = "a decimal of more digits than float64 has; write the column as double"
    return pc.if_else(pa.array(is_bad_B), pa.scalar(None, pa.float64()), numbers), RowFault(rule, is_bad_B)


def _trimmed(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts of numbers without zeros at the end of their places."""
    texts = pc.replace_substring_regex(texts, r"\.0+$", "")
    return pc.replace_substring_regex(texts, r"(\.[0-9]*[1-9])0+$", r"\1")
