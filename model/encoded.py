"""What an encoded block is: the only inputs that a ranker sees.

Shapes: B rows, K single-id features, L list features, V list values in all, D numbers.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.columns import Column, Ids
from model.schema import Feature, IdListFeature, NumberFeature


class EncodedBlock(NamedTuple):
    """One block (request or candidate) of model inputs: `ids_BK`, list ids feature by feature, `numbers_BD`."""

    ids_BK: Ids
    list_values_V: Ids
    list_lengths_LB: Ids
    numbers_BD: NDArray[np.float32]


class Encoded(NamedTuple):
    """An encoded block, and per feature how many rows were missing (an empty list counts as missing) and how many ids
    were unknown to a vocabulary."""

    block: EncodedBlock
    missing: dict[str, int]
    oov: dict[str, int]


def serving_column(feature: Feature) -> Column:
    """The one value that a training_only feature has where it serves."""
    assert not isinstance(feature, IdListFeature)
    assert feature.serving_value is not None
    if isinstance(feature.serving_value, str):
        return Column([feature.serving_value])
    if isinstance(feature, NumberFeature):
        return Column(np.array([feature.serving_value], np.float64))
    return Column(np.array([feature.serving_value], np.int64))
