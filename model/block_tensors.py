"""What an encoded block is to torch, and the order of its features: what embeddings read.

Shapes: B rows, K single-id features, L list features, V list values, N numbers.
"""

from typing import NamedTuple

from torch import Tensor

from model.schema import Block, FeedSchema, IdFeature, IdListFeature, NumberFeature

BLOCKS: tuple[Block, Block] = ("request", "candidate")


class BlockTensors(NamedTuple):
    """An `EncodedBlock` as tensors: int64 ids and lengths, float32 numbers."""

    ids_BK: Tensor
    list_values_V: Tensor
    list_lengths_LB: Tensor
    numbers_BN: Tensor


def block_features(
    schema: FeedSchema, block: Block
) -> tuple[list[IdFeature], list[IdListFeature], list[NumberFeature]]:
    """The features of a block by kind, in the order of their tensors."""
    features = schema.block(block)
    return (
        [feature for feature in features if isinstance(feature, IdFeature)],
        [feature for feature in features if isinstance(feature, IdListFeature)],
        [feature for feature in features if isinstance(feature, NumberFeature)],
    )
