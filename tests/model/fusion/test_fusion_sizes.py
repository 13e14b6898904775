"""Parameter counts of the networks at the Census sizes, against the totals of the authors' own modules."""

from typing import Any

import pytest
import torch

from model.ranker import Network, NetworkConfig
from tests.model.fusion.cases import Case
from tests.model.fusion.equations import routes_of

COLUMNS = 131  # 31 embeddings of 4 columns each, 7 numbers
EMBEDDINGS = 2_040  # 510 rows of 4
TASKS = 3


def parameters_of(case: Case) -> int:
    """All parameters of a Census ranker with this fusion network and towers of one hidden layer of 32."""
    torch.manual_seed(0)
    network = Network(NetworkConfig(fusion=case.parsed, tower=(32,)), COLUMNS, (1,) * TASKS)
    return EMBEDDINGS + sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("sizes", "total"), [
    ({"kind": "adatt_sp", "levels": [128, 64], "experts_per_task": 2}, 164_001),
    ({"kind": "shared_bottom", "levels": [384, 192]}, 145_275),
    ({"kind": "ml_mmoe", "levels": [128, 64], "num_experts": 6}, 166_419),
    ({"kind": "ple", "levels": [128, 64], "experts_per_task": 1, "shared_experts": 3}, 163_215),
    ({"kind": "shared_bottom", "levels": [128, 64]}, 33_531),
    # 87,915 with embeddings for each task. Here the tasks share them.
    ({"kind": "no_sharing", "levels": [128, 64]}, 87_915 - 2 * EMBEDDINGS),
])  # fmt: skip
def test_census_networks_have_the_published_sizes(sizes: dict[str, Any], total: int) -> None:
    assert parameters_of(Case(sizes, TASKS)) == total


def test_fixed_random_routing_pays_for_the_modules_drawn() -> None:
    """Five seeds, as many as the reference's, which span 33 to 76 thousand."""
    totals = []
    for seed in range(5):
        case = Case({"kind": "fixed_random_routing", "levels": [128, 64], "num_modules": 3, "seed": seed}, TASKS)
        first, second = (len(set(modules)) for modules in routes_of(case))
        towers = TASKS * (65 * 32 + 33)
        totals.append(parameters_of(case))
        assert totals[-1] == EMBEDDINGS + first * 132 * 128 + second * 129 * 64 + towers
    assert 33_000 <= min(totals) < max(totals) <= 76_000
