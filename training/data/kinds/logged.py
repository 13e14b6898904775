"""Base of every kind of feature in a log: the operations of training in which kinds differ.

In: a feature and Arrow columns of the usual types. Out: raw columns, the inputs of boosted trees, values as requests
send them. A kind is a file beside this one, and its entry in training.data.kinds.

Shapes: B rows.
"""

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.features.kinds.columns import Column, Dtype
from model.features.kinds.feature import BaseFeature

Kind = TypeVar("Kind", bound=BaseFeature)
Floats = NDArray[np.float64]


class LoggedFeature(ABC, Generic[Kind]):
    """A feature as the jobs of training read it."""

    def __init__(self, feature: Kind) -> None:
        self.feature = feature

    @abstractmethod
    def column(self, dtype: Dtype | None, values: pa.ChunkedArray, *, is_coded: bool) -> Column:
        """A column, of each string once if `is_coded`. Raises ValueError for a type that does not fit, and RowFault."""

    def tree_inputs(self, values: pa.ChunkedArray) -> dict[str, Floats]:
        """Inputs of boosted trees by name, [B], NaN where missing. Single ids have none: they are categories."""
        return {}

    def request_value(self, value: Any) -> Any:
        """A Parquet value as a request sends it."""
        return value
