"""Activation units of lists in a training step: they stand before the row, and learn from its gradient alone."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from model.embeddings.embeddings import Embeddings
from model.embeddings.histories import activation_units
from model.features.block import BlockTensors
from model.features.encoder import FeatureEncoder, FittedFeatures
from model.ranker import Network, NetworkConfig, Ranker
from tests.model.attention import attention_feed, random_block
from training.step.balancing import KINDS, BalancingConfig
from training.step.balancing.losses import TaskLosses

ROWS = 20
# GradDrop keeps entries of a gradient by chance where tasks differ in sign. With one task none is left out.
SCHEMA = attention_feed(mlp=True).with_tasks(["click"])


def gradients_of(kind: str) -> dict[str, torch.Tensor]:
    """Gradients of a network's parameters after one backward pass."""
    torch.manual_seed(0)
    encoder = FeatureEncoder(SCHEMA, FittedFeatures(numbers={"age": (), "price": ()}))
    embeddings = Embeddings(SCHEMA, encoder)
    config = NetworkConfig.from_mapping({"fusion": {"kind": "shared_bottom", "levels": [8]}, "tower": [4]}, "test")
    ranker = Ranker(embeddings, Network(config, embeddings.width, (1,), units=activation_units(SCHEMA, 1)))
    for weight in embeddings.table_weights().values():
        weight.normal_(std=1.5)
    losses = TaskLosses(SCHEMA)
    setting: Any = TypeAdapter(BalancingConfig).validate_python({"kind": kind})
    balancing = setting.build(losses, 0)
    blocks = random_block(SCHEMA, "request", ROWS, 1), random_block(SCHEMA, "candidate", ROWS, 2)
    rows_BD = embeddings(*map(BlockTensors.of, blocks))
    targets_BT = (torch.arange(ROWS).unsqueeze(1) % 2).float()
    losses_T = balancing.losses(ranker.network(rows_BD), targets_BT, torch.ones(ROWS, 1))
    balancing.backward(losses_T, balancing.total(losses_T), rows_BD, ranker.network, 0)
    found = {name: p.grad for name, p in ranker.network.named_parameters() if p.grad is not None}
    assert len(found) == len(list(ranker.network.parameters()))
    return found


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("none", "uncertainty", "gradnorm")])
def test_a_gradient_method_with_one_task_gives_units_the_plain_gradient(kind: str) -> None:
    plain, found = gradients_of("none"), gradients_of(kind)
    units = [name for name in plain if name.startswith("activation_units.")]
    assert len(units) == 4
    assert max(float(plain[name].abs().max()) for name in units) > 1e-3
    # Some methods scale the one gradient: all of the network's by the same factor then.
    factors = [float(found[name].norm() / plain[name].norm()) for name in plain if not name.startswith("towers.")]
    for name in units:
        torch.testing.assert_close(found[name], plain[name] * factors[0], atol=1e-6, rtol=1e-4)
    assert max(factors) == pytest.approx(min(factors), rel=1e-4)
