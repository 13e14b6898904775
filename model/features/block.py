"""Encoded blocks, the only inputs that a ranker sees: as arrays, and as tensors in the order that embeddings read.

Shapes: B rows, K single-id features, L list features, V list values in all, Q numbers.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.features.kinds import Feature
from model.features.kinds.columns import Ids
from model.features.kinds.inputs import Inputs
from model.schema import Block, FeedSchema


class EncodedBlock(NamedTuple):
    """One block (request or candidate) of model inputs: `ids_BK`, list ids feature by feature, `numbers_BQ`."""

    ids_BK: Ids
    list_values_V: Ids
    list_lengths_LB: Ids
    numbers_BQ: NDArray[np.float32]


class Encoded(NamedTuple):
    """An encoded block, with counts by feature, of those that have any: rows that were missing (an empty list is) and
    ids outside the vocabulary."""

    block: EncodedBlock
    missing: dict[str, int]
    oov: dict[str, int]


def some(counts: dict[str, int]) -> dict[str, int]:
    """The counts that are not 0."""
    return {name: count for name, count in counts.items() if count} if counts else counts


BLOCKS: tuple[Block, Block] = ("request", "candidate")


class BlockTensors(NamedTuple):
    """An `EncodedBlock` as tensors: int64 ids and lengths, float32 numbers."""

    ids_BK: Tensor
    list_values_V: Tensor
    list_lengths_LB: Tensor
    numbers_BQ: Tensor

    @classmethod
    def of(cls, block: EncodedBlock) -> "BlockTensors":
        """The tensors of a block. Nothing is copied where memory allows."""
        return cls(*(torch.from_numpy(np.ascontiguousarray(array)) for array in block))


def block_inputs(schema: FeedSchema, block: Block) -> Inputs:
    """The inputs of a block's features."""
    return inputs_of(schema.block(block))


def inputs_of(features: Sequence[Feature]) -> Inputs:
    """The inputs of features, each sort in the order given."""
    inputs = Inputs([], [], [])
    for feature in features:
        feature.add_inputs(inputs)
    return inputs


def row_columns(schema: FeedSchema) -> Iterator[tuple[str, int]]:
    """Columns of the dense row by feature, in their order. The request's stand first, then the candidate's. Those of
    lists with attention, which are of the pair, are last."""
    dims = {name: table.dim for table in schema.tables for name in table.features}
    for block in BLOCKS:
        yield from block_inputs(schema, block).widths(dims)
    for attention in schema.attentions:
        yield attention.name, attention.dim
