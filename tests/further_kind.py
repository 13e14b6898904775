"""A kind of feature that this repository does not have, as somebody would add it: vectors of one length.

Two classes, one for model/ and one for training/. `register` enters the second where training registers kinds.
`schema_with` makes a schema of such features, for YAML knows the kinds of the union alone.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import training.data.kinds
from model.features.block import inputs_of
from model.features.kinds import IdFeature
from model.features.kinds.columns import Column, ColumnError, ColumnFault, Dtype, checked_column
from model.features.kinds.feature import BaseFeature
from model.features.kinds.inputs import Inputs, NumberInput
from model.schema import FeedSchema
from model.tasks import BinaryTask
from training.columns import floats
from training.data.bad_rows import RowFault
from training.data.kinds.logged import Floats, LoggedFeature


class VectorFeature(BaseFeature):
    """`length` numbers per row. A missing vector is `missing` in every place."""

    has_ids: ClassVar[bool] = False
    is_list: ClassVar[bool] = True

    kind: Literal["vector"] = "vector"
    side: Literal["user", "context", "candidate"]
    length: int
    missing: float = 0.0

    def column(self, values: Sequence[object], dtype: Dtype | None) -> Column:
        """As BaseFeature has it."""
        rows = [value if isinstance(value, list) else [] for value in values]
        for row, value in enumerate(values):
            if value is not None and len(rows[row]) != self.length:
                raise ColumnError(self.name, [ColumnFault(row, f"expected {self.length} numbers or null")])
        lengths_B = np.array([len(row) for row in rows], np.int64)
        return checked_column(self.name, None, [number for row in rows for number in row], lengths_B)

    def add_inputs(self, inputs: Inputs) -> None:
        """As BaseFeature has it."""
        for position in range(self.length):
            inputs.numbers.append(NumberInput(f"{self.name}.{position}", self.name, (), self.missing, position))


class LoggedVector(LoggedFeature[VectorFeature]):
    """A vector per row of a log."""

    def column(self, dtype: Dtype | None, values: pa.ChunkedArray, *, is_coded: bool) -> Column:
        """As LoggedFeature has it."""
        lengths_B = pc.fill_null(pc.list_value_length(values), 0).to_numpy().astype(np.int64)
        is_bad_B = (lengths_B != self.feature.length) & (lengths_B > 0)
        if is_bad_B.any():
            raise RowFault(f"not {self.feature.length} numbers", is_bad_B)
        return Column(floats(pc.list_flatten(values)), None, lengths_B)

    def tree_inputs(self, values: pa.ChunkedArray) -> dict[str, Floats]:
        """As LoggedFeature has it."""
        column = self.column(None, values, is_coded=False)
        return {one.name: one._replace(missing=np.nan).raw(column) for one in inputs_of([self.feature]).numbers}  # type: ignore[list-item]


def schema_with(*vectors: VectorFeature) -> FeedSchema:
    """A feed of one id and these vectors, with one binary task."""
    video = IdFeature.from_mapping({"name": "video", "kind": "id", "side": "candidate", "buckets": 9, "dim": 4}, "test")
    click = BinaryTask.from_mapping({"name": "click", "kind": "binary", "label": "clicked"}, "test")
    # The union of kinds does not know this one, and `model_construct` does not ask it.
    features: tuple[Any, ...] = (video, *vectors)
    return FeedSchema.model_construct(name="further", features=features, tasks=(click,))


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enter the kind where training registers kinds."""
    monkeypatch.setitem(training.data.kinds._KINDS, VectorFeature, LoggedVector)  # type: ignore[misc]
