"""Kind `number` in a log: a column of integers, floats or booleans.

Shapes: B rows.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from model.features.kinds import NumberFeature
from model.features.kinds.columns import Column, Dtype
from training.columns import floats
from training.data.bad_rows import RowFault
from training.data.kinds.logged import Floats, LoggedFeature


class LoggedNumber(LoggedFeature[NumberFeature]):
    """One number per row."""

    def column(self, dtype: Dtype | None, values: pa.ChunkedArray, *, is_coded: bool) -> Column:
        numbers_B = floats(values)
        missing = values.is_null().to_numpy() if values.null_count else None
        is_bad = ~np.isfinite(numbers_B) if missing is None else ~np.isfinite(numbers_B) & ~missing
        if is_bad.any():
            raise RowFault("NaN or infinity; write null where a number is missing", is_bad)
        return Column(np.where(missing, 0.0, numbers_B) if missing is not None else numbers_B, missing)

    def tree_inputs(self, values: pa.ChunkedArray) -> dict[str, Floats]:
        # As it is in the data: trees need no transform.
        return {self.feature.name: floats(values)}

    def request_value(self, value: Any) -> Any:
        return None if value is None else float(value)
