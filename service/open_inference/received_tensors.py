"""A request of /v2 as the impression log and the shadow version read it.

In: its features. Out: the same as JSON has it.

Shapes: N candidates, B rows of a column.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from model.features.encoder import Column, FeatureEncoder
from service.state.user_state import Hydrated


class ReceivedTensors(NamedTuple):
    """A request of /v2: user and context as JSON has them, the candidates' columns, and N."""

    user: dict[str, Any]
    candidates: Mapping[str, Column]
    num_candidates: int
    hydrated: Hydrated | None = None
    rows: None = None
    top_k: int | None = None

    @property
    def ids(self) -> list[str]:
        """The candidates' positions."""
        return list(map(str, range(self.num_candidates)))

    def written(self) -> Mapping[str, Any]:
        """The candidates' columns."""
        return {name: listed(column) for name, column in self.candidates.items()}

    def request_columns(self, encoder: FeatureEncoder) -> Mapping[str, Column]:
        """The columns of user and context, as the encoder of the requested version reads them."""
        return encoder.request_columns(self.user)


def listed(column: Column) -> list[Any]:
    """A column as JSON has it."""
    values: list[Any] = column.values.tolist() if isinstance(column.values, np.ndarray) else column.values
    if column.missing is not None:
        values = [None if is_null else value for value, is_null in zip(values, column.missing.tolist(), strict=True)]
    if column.lengths_B is None:
        return values
    ends_B = np.cumsum(column.lengths_B)
    starts_B = ends_B - column.lengths_B
    return [values[start:end] for start, end in zip(starts_B.tolist(), ends_B.tolist(), strict=True)]
