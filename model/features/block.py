"""Encoded blocks, the only inputs that a ranker sees: as arrays, and as tensors in the order that embeddings read.

Shapes: B rows, K single-id features, L list features, V list values in all, D numbers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.features.kinds import Feature, IdFeature, IdListFeature, NumberFeature
from model.features.kinds.columns import Ids
from model.schema import Block, FeedSchema


class EncodedBlock(NamedTuple):
    """One block (request or candidate) of model inputs: `ids_BK`, list ids feature by feature, `numbers_BD`."""

    ids_BK: Ids
    list_values_V: Ids
    list_lengths_LB: Ids
    numbers_BD: NDArray[np.float32]


class Encoded(NamedTuple):
    """An encoded block, with counts per feature: rows that were missing (an empty list is) and ids outside the
    vocabulary."""

    block: EncodedBlock
    missing: dict[str, int]
    oov: dict[str, int]


BLOCKS: tuple[Block, Block] = ("request", "candidate")


class BlockTensors(NamedTuple):
    """An `EncodedBlock` as tensors: int64 ids and lengths, float32 numbers."""

    ids_BK: Tensor
    list_values_V: Tensor
    list_lengths_LB: Tensor
    numbers_BN: Tensor


class ByKind(NamedTuple):
    """Features by kind, in the order of their tensors."""

    ids: list[IdFeature]
    lists: list[IdListFeature]
    numbers: list[NumberFeature]


def block_features(schema: FeedSchema, block: Block) -> ByKind:
    """The features of a block by kind."""
    return features_by_kind(schema.block(block))


def features_by_kind(features: Sequence[Feature]) -> ByKind:
    """Features by kind, each kind in the order given."""
    return ByKind(
        [feature for feature in features if isinstance(feature, IdFeature)],
        [feature for feature in features if isinstance(feature, IdListFeature)],
        [feature for feature in features if isinstance(feature, NumberFeature)],
    )
