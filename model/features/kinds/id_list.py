"""Kind `id_list`: a list of ids per row.

Shapes: B rows, V values of all lists.
"""

from collections.abc import Sequence
from itertools import chain
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from model.features.kinds.columns import FAULTS_SHOWN, Column, ColumnError, ColumnFault, Dtype, checked_column, shown
from model.features.kinds.embedded import Attended, AttentionKind, EmbeddedFeature
from model.features.kinds.inputs import Inputs, ListInput, Pooling
from model.strict_yaml import Name

# Its cost grows with items times candidates: 1.1 ms of CPU for 50 and 500 (benchmarks/results/attention.md).
MOST_OF_MLP = 50


class IdListFeature(EmbeddedFeature):
    """A list of ids per row, oldest first: the latest `max_length` are kept and pooled. A missing list is empty.

    `pooling: attention` weighs the ids of a request's list by their likeness to each candidate, `query` being the id of
    the candidate that is compared: by default the one that reads the list's table."""

    is_list: ClassVar[bool] = True
    has_fast_path: ClassVar[bool] = True

    kind: Literal["id_list"]
    side: Literal["user", "context", "candidate"]
    max_length: int = Field(ge=1, le=10_000)
    pooling: Pooling = "mean"
    attention: AttentionKind | None = None
    query: Name | None = None

    @model_validator(mode="after")
    def _check_attention(self) -> Self:
        given = [key for key in ("attention", "query") if getattr(self, key) is not None]
        if self.pooling != "attention":
            if given:
                raise ValueError(f"feature '{self.name}': {given[0]} applies to `pooling: attention` alone")
        elif self.side == "candidate":
            raise ValueError(
                f"feature '{self.name}': attention weighs a list of the request by each candidate, so its side is user "
                "or context; for a list of the candidate use pooling: mean or sum"
            )
        elif self.attention == "mlp" and self.max_length > MOST_OF_MLP:
            raise ValueError(
                f"feature '{self.name}': attention: mlp takes lists of {MOST_OF_MLP} at most, got "
                f"max_length {self.max_length}; use attention: dot for longer ones"
            )
        return self

    @property
    def attended(self) -> Attended | None:
        if self.pooling != "attention":
            return None
        return Attended(self.attention or "dot", self.query, self.max_length)

    def description(self) -> str:
        return f"ids, oldest first, of which the latest {self.max_length:,} are kept. Null is an empty list"

    def cut_rows(self, column: Column) -> NDArray[np.bool_]:
        assert column.lengths_B is not None
        return column.lengths_B > self.max_length

    def add_inputs(self, inputs: Inputs) -> None:
        inputs.lists.append(ListInput(self.name, self.max_length, self.pooling))

    def column(self, values: Sequence[object], dtype: Dtype | None) -> Column:
        if not set(map(type, values)) <= {list, type(None)}:
            faults = [
                ColumnFault(row, f"expected a list of ids or null, got {shown(value)}")
                for row, value in enumerate(values)
                if not isinstance(value, list | None)
            ]
            raise ColumnError(self.name, faults[:FAULTS_SHOWN])
        lists: list[list[object]] = [value or [] for value in values]  # type: ignore[misc]
        flat = list(chain.from_iterable(lists))
        lengths_B = np.fromiter(map(len, lists), np.int64, len(lists))
        return checked_column(self.name, dtype, flat, lengths_B)
