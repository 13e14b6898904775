"""Kind `id_list` in a log: a column of lists of integers or strings.

Shapes: B rows.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.features.kinds import IdListFeature
from model.features.kinds.columns import Column, Dtype
from training.columns import plain
from training.data.kinds.logged import Floats, LoggedFeature
from training.data.kinds.values import ids_of

_LIST_TYPES = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


class LoggedIdList(LoggedFeature[IdListFeature]):
    """A list of ids per row."""

    def column(self, dtype: Dtype | None, values: pa.ChunkedArray, *, is_coded: bool) -> Column:
        if pa.types.is_null(values.type):
            values = values.cast(pa.list_(pa.null()))
        if not any(is_type(values.type) for is_type in _LIST_TYPES):
            raise ValueError(f"is {values.type}, an id_list needs a list column")
        return ids_of(dtype, plain(pc.list_flatten(values)), values.type, _lengths(values), is_coded=is_coded)

    def tree_inputs(self, values: pa.ChunkedArray) -> dict[str, Floats]:
        lengths_B = _lengths(values).astype(np.float64)
        return {self.feature.name: np.minimum(lengths_B, self.feature.max_length)}


def _lengths(values: pa.ChunkedArray) -> NDArray[np.int64]:
    lengths_B: NDArray[np.int64] = pc.fill_null(pc.list_value_length(values), 0).to_numpy().astype(np.int64)
    return lengths_B
