"""Base of every kind of feature: the operations in which kinds differ.

In: a feature of the schema, checked. Out: its raw columns from JSON, and the facts by which encoder, tables and pages
treat it. A kind is a file beside this one, and its name in the union of model.features.kinds.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from model.features.kinds.columns import Column, Dtype, checked_column, value_schema
from model.features.kinds.inputs import Inputs
from model.strict_yaml import Name, StrictModel

Side = Literal["user", "context", "candidate", "training_only"]


class BaseFeature(StrictModel):
    """A feature of a feed: ids, which a table embeds, or other values, and one in each row or a list of them. A kind
    also declares `kind` and `side`."""

    has_ids: ClassVar[bool]
    is_list: ClassVar[bool]
    # True where readers of many features in one pass know the kind: those of a request's row and of plain columns
    # (model.features.encoder), and of tensors of bytes (service.open_inference). All other kinds go through `column`.
    has_fast_path: ClassVar[bool] = False

    name: Name

    def column(self, values: Sequence[object], dtype: Dtype | None) -> Column:
        """A column from JSON values (None is null). Raises ColumnError naming each faulty row."""
        return checked_column(self.name, dtype, values)

    def json_schema(self, dtype: Dtype | None) -> dict[str, Any]:
        """JSON Schema of the feature's value in a request, described."""
        value = value_schema(dtype)
        if self.is_list:
            value = {"anyOf": [{"type": "array", "items": value}, {"type": "null"}]}
        return {"description": self.description(), **value}

    def description(self) -> str:
        """The value in words, for who sends it."""
        return "a list of values" if self.is_list else "a value"

    def cut_rows(self, column: Column) -> NDArray[np.bool_] | None:
        """Mask of the rows of which values are left out, [B]. None where the kind has no limit."""
        return None

    @abstractmethod
    def add_inputs(self, inputs: Inputs) -> None:
        """Add the feature's places among the tensors of an encoded block."""

    def check_serving_value(self, dtype: Dtype | None) -> None:
        """Raise ValueError unless the feature has a value for scores exactly where it needs one. A kind that is on no
        side that needs one leaves this as it is."""

    def serving_column(self) -> Column:
        """The one value that a training_only feature has where it serves."""
        raise AssertionError(f"{self.name} is of a kind that is never training_only")


def check_side(name: str, side: Side, serving_value: object) -> None:
    """Raise ValueError unless a feature has a serving value exactly where it is training_only."""
    if side == "training_only" and serving_value is None:
        raise ValueError(f"feature '{name}' is training_only and needs serving_value, its value in all scores")
    if side != "training_only" and serving_value is not None:
        raise ValueError(f"feature '{name}': serving_value applies to side training_only alone")


def column_of(value: float | int | str | None) -> Column:
    """A column of one row."""
    assert value is not None
    if isinstance(value, str):
        return Column([value])
    if isinstance(value, int):
        return Column(np.array([value], np.int64))
    return Column(np.array([value], np.float64))
