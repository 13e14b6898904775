"""Arrow columns -> raw columns (model.columns): what a log's Parquet holds of a feature, checked against its type.

In: an Arrow column of the log. Out: the `Column` that features are encoded from, or a ValueError with the first row
that does not fit. Needs neither torch nor TorchRec.
"""

from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.columns import Column
from model.schema import ID_LIMITS, Feature, FeedSchema, IdListFeature, NumberFeature

_NUMBER_KINDS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
_LIST_KINDS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_STRING_KINDS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


def dtype_of(schema: FeedSchema, feature: Feature) -> str | None:
    """The dtype of an id or id_list feature's values; None of a number."""
    return next((table.dtype for table in schema.tables if feature.name in table.features), None)


def plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """A dictionary column as the values that it stands for; a null in the dictionary becomes a null of the column."""
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def floats(values: pa.ChunkedArray) -> NDArray[np.float64]:
    """Numbers as float64, null as NaN."""
    kind = values.type
    if not any(is_kind(kind) for is_kind in _NUMBER_KINDS):
        raise ValueError(f"is {kind}, not a number")
    return cast(NDArray[np.float64], values.cast(pa.float64(), safe=False).to_numpy())


def column_from_arrow(feature: Feature, dtype: str | None, values: pa.ChunkedArray) -> Column:
    """A `Column` from an Arrow column. Raises ValueError for a type that does not fit, and for NaN (write null)."""
    values = plain(values)
    if isinstance(feature, NumberFeature):
        numbers = floats(values)
        missing = values.is_null().to_numpy() if values.null_count else None
        is_bad = ~np.isfinite(numbers) if missing is None else ~np.isfinite(numbers) & ~missing
        if is_bad.any():
            raise ValueError(f"row {int(is_bad.argmax())}: NaN or infinity; write null where a number is missing")
        return Column(np.where(missing, 0.0, numbers) if missing is not None else numbers, missing)
    if isinstance(feature, IdListFeature):
        if pa.types.is_null(values.type):
            values = values.cast(pa.list_(pa.null()))
        if not any(is_kind(values.type) for is_kind in _LIST_KINDS):
            raise ValueError(f"is {values.type}, an id_list needs a list column")
        lengths_B = pc.fill_null(pc.list_value_length(values), 0).to_numpy().astype(np.int64)
        flat = _ids(dtype, plain(pc.list_flatten(values)), lengths_B)
        return Column(flat.values, flat.missing, lengths_B)
    return _ids(dtype, values)


def _ids(dtype: str | None, values: pa.ChunkedArray, lengths_B: NDArray[np.int64] | None = None) -> Column:
    kind = values.type
    missing = values.is_null().to_numpy() if values.null_count else None
    if pa.types.is_null(kind):
        empty: list[str] | NDArray[np.int64] = (
            [""] * len(values) if dtype == "string" else np.zeros(len(values), np.int64)
        )
        return Column(empty, missing)
    if dtype == "int64":
        if not pa.types.is_integer(kind):
            raise ValueError(f"is {values.type}, an id of dtype int64 needs an integer column")
        try:
            return Column(pc.fill_null(values.cast(pa.int64()), 0).to_numpy(), missing)
        except pa.ArrowInvalid:
            place = pc.index(pc.greater(values, pa.scalar(ID_LIMITS[1], kind)), True).as_py()
            row = place if lengths_B is None else int(np.searchsorted(np.cumsum(lengths_B), place, side="right"))
            raise ValueError(f"row {row}: an id beyond int64") from None
    if not any(is_kind(kind) for is_kind in _STRING_KINDS):
        raise ValueError(f"is {values.type}, an id of dtype string needs a string column")
    # One Python string per distinct value: rows share it, whatever the column's length.
    encoded = pc.fill_null(values.cast(pa.string()), "").combine_chunks().dictionary_encode()
    distinct = np.array([*encoded.dictionary.to_pylist(), ""], dtype=object)[:-1]
    return Column(cast(list[str], distinct[encoded.indices.to_numpy()].tolist()), missing)


def columns_from_arrow(schema: FeedSchema, table: pa.Table) -> dict[str, Column]:
    """The columns of every feature of a checked table."""
    return {
        feature.name: column_from_arrow(feature, dtype_of(schema, feature), table.column(feature.name))
        for feature in schema.features
    }
