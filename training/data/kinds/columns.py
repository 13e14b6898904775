"""Arrow columns -> raw columns of features (model.features.kinds.columns)."""

import pyarrow as pa

from model.features.kinds import Feature
from model.features.kinds.columns import Column, Dtype
from model.schema import FeedSchema
from training.columns import plain
from training.data.kinds import in_log
from training.data.usual_types import usual


def dtypes_of(schema: FeedSchema) -> dict[str, Dtype]:
    """The dtypes of the ids of every id and id_list feature."""
    return {name: table.dtype for table in schema.tables for name in table.features}


def column_from_arrow(
    feature: Feature, dtype: Dtype | None, values: pa.ChunkedArray, *, is_coded: bool = False
) -> Column:
    """A `Column` from an Arrow column, of each string once if `is_coded`. Raises ValueError for a type that does not
    fit, and for NaN (write null)."""
    values, fault = usual(plain(values))
    if fault is not None:
        raise fault
    return in_log(feature).column(dtype, values, is_coded=is_coded)


def columns_from_arrow(schema: FeedSchema, table: pa.Table, *, is_coded: bool = False) -> dict[str, Column]:
    """The columns of every feature of a checked table."""
    dtypes = dtypes_of(schema)
    return {
        feature.name: column_from_arrow(
            feature, dtypes.get(feature.name), table.column(feature.name), is_coded=is_coded
        )
        for feature in schema.features
    }
