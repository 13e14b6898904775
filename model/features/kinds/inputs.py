"""Inputs of a block: the places that its features take among the tensors of an encoded block.

A kind of feature says its inputs once (`add_inputs`). Encoder, tables, exported module and catalogue read these and not
the kinds: single ids are columns of ids_BK, lists rows of list_lengths_LB, numbers columns of numbers_BD.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.features.kinds.columns import Column

NumberTransform = Literal["log1p", "standardise", "quantile"]


class ListInput(NamedTuple):
    """A list of ids per row, of which the latest `max_length` are pooled."""

    name: str
    max_length: int
    pooling: Literal["mean", "sum"]


class NumberInput(NamedTuple):
    """A number per row, the one at `position` of its feature's row. `missing` is the raw value that a null takes."""

    name: str
    feature: str
    transform: tuple[NumberTransform, ...]
    missing: float
    position: int = 0

    def values(self, column: Column) -> NDArray[np.float64]:
        """Raw values of its feature's column, [B]. A column has one number a row, or several in a second dimension."""
        values: NDArray[np.float64] = column.values  # type: ignore[assignment]
        return values if values.ndim == 1 else values[:, self.position]


class Inputs(NamedTuple):
    """The inputs of a block's features, in the order of their tensors. Single ids are named by their feature."""

    ids: list[str]
    lists: list[ListInput]
    numbers: list[NumberInput]

    def widths(self, dims: Mapping[str, int]) -> Iterator[tuple[str, int]]:
        """Each input's feature and columns of the dense row, in their order. `dims` are the features' embeddings'."""
        for name in (*self.ids, *(one.name for one in self.lists)):
            yield name, dims[name]
        for number in self.numbers:
            yield number.feature, 1
