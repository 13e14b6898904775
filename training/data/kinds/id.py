"""Kind `id` in a log: a column of integers or strings."""

import pyarrow as pa

from model.features.kinds import IdFeature
from model.features.kinds.columns import Column, Dtype
from training.data.kinds.logged import LoggedFeature
from training.data.kinds.values import ids_of


class LoggedId(LoggedFeature[IdFeature]):
    """One id per row."""

    def column(self, dtype: Dtype | None, values: pa.ChunkedArray, *, is_coded: bool) -> Column:
        return ids_of(dtype, values, values.type, is_coded=is_coded)
