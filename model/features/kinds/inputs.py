"""Inputs of a block: the places that its features take among the tensors of an encoded block.

A kind of feature says its inputs once (`add_inputs`). Encoder, tables, exported module and catalogue read these and not
the kinds: single ids are columns of ids_BK, lists rows of list_lengths_LB, numbers columns of numbers_BQ.

Shapes: B rows, Q numbers.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.features.kinds.columns import Column

NumberTransform = Literal["log1p", "standardise", "quantile"]
Pooling = Literal["mean", "sum", "attention"]


class ListInput(NamedTuple):
    """A list of ids per row, of which the latest `max_length` are pooled. By attention they are columns of the pair of
    a request and a candidate, otherwise of its block."""

    name: str
    max_length: int
    pooling: Pooling


class NumberInput(NamedTuple):
    """A number per row, the one at `position` of its feature's row. `missing` is the raw value where there is none."""

    name: str
    feature: str
    transform: tuple[NumberTransform, ...]
    missing: float
    position: int = 0

    def raw(self, column: Column) -> NDArray[np.float64]:
        """Raw values in its feature's column, [B], `missing` where a row has none."""
        values: NDArray[np.float64] = column.values  # type: ignore[assignment]
        if column.lengths_B is not None:
            has_value_B = column.lengths_B > self.position
            raw_B = np.full(column.rows, self.missing)
            raw_B[has_value_B] = values[(np.cumsum(column.lengths_B) - column.lengths_B)[has_value_B] + self.position]
            return raw_B
        return values if column.missing is None else np.where(column.missing, self.missing, values)


class Inputs(NamedTuple):
    """The inputs of a block's features, in the order of their tensors. Single ids are named by their feature."""

    ids: list[str]
    lists: list[ListInput]
    numbers: list[NumberInput]

    @property
    def pooled_lists(self) -> list[str]:
        """The lists that are pooled within their block, without a look at another."""
        return [one.name for one in self.lists if one.pooling != "attention"]

    def widths(self, dims: Mapping[str, int]) -> Iterator[tuple[str, int]]:
        """Each input's feature and columns of the block's part of the dense row, in their order. `dims` are the
        features' embeddings'."""
        for name in (*self.ids, *self.pooled_lists):
            yield name, dims[name]
        for number in self.numbers:
            yield number.feature, 1
