"""Costs of networks against counts by hand."""

import pytest
from torch import nn

from model.ranker import Network, NetworkConfig
from training.compare.cost import multiply_adds

D, T = 10, 3


def network(**fusion: object) -> nn.Module:
    return Network(NetworkConfig.from_mapping({"fusion": fusion, "tower": [5]}, "test"), D, (1,) * T)


def towers(width: int) -> int:
    return T * (width * 5 + 5)


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [
        ({"kind": "shared_bottom", "levels": [8, 4]}, D * 8 + 8 * 4 + towers(4)),
        ({"kind": "no_sharing", "levels": [8, 4]}, T * (D * 8 + 8 * 4) + towers(4)),
        # Six experts of 8. A gate over 6 for each task, and its weighted sum.
        ({"kind": "mmoe", "levels": [8], "num_experts": 6}, 6 * D * 8 + T * (D * 6 + 6 * 8) + towers(8)),
        # As before for two experts per task, twice: the second level reads 8 columns. Native weights are added.
        (
            {"kind": "adatt_sp", "levels": [8, 4], "experts_per_task": 2},
            6 * D * 8 + T * (D * 6 + 6 * 8) + 6 * 8 * 4 + T * (8 * 6 + 6 * 4) + towers(4),
        ),
        # Task gates see 1 own and 2 shared experts. Weights are padded to all 5 before the sum.
        (
            {"kind": "ple", "levels": [8], "experts_per_task": 1, "shared_experts": 2},
            5 * D * 8 + T * D * 3 + T * 5 * 8 + towers(8),
        ),
        ({"kind": "cross_stitch", "levels": [8]}, T * D * 8 + T * T * 8 + towers(8)),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_multiply_adds_counted_by_hand(fusion: dict[str, object], expected: int) -> None:
    assert multiply_adds(network(**fusion), D) == expected
