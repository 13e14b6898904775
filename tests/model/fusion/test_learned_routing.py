"""Learned routing in training mode: what is drawn, what is computed, and how tables become probabilities."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from model.fusion import LearnedRouting, LearnedRoutingConfig
from model.fusion.learned_routing import policy_perplexities
from model.fusion.policy import PUBLISHED_EPSILON, probabilities, published_projection, simplex_projection
from model.ranker import NetworkConfig
from tests.model.fusion.cases import CASES, INPUT_WIDTH, rows_of

TASKS = 3


def network(seed: int = 0, **changes: Any) -> LearnedRouting:
    """Three tasks, layers of 6 and 4, three modules, in training mode."""
    fusion = {"kind": "learned_routing", "levels": [6, 4], "num_modules": 3, **changes}
    config = NetworkConfig.from_mapping({"fusion": fusion}, "network.yaml").fusion
    assert isinstance(config, LearnedRoutingConfig)
    torch.manual_seed(seed)
    return config.build(INPUT_WIDTH, TASKS).train()


@pytest.mark.parametrize("routed", [None, [0], [1]])
def test_each_row_and_task_goes_through_the_drawn_modules(routed: list[int] | None) -> None:
    module, rows_BD = network(routed=routed), rows_of(50)
    fused_BTH = module(rows_BD)
    layers = module.routed_layers()
    assert list(layers) == ([0, 1] if routed is None else routed)
    for row, task in np.ndindex(50, TASKS):
        hidden = rows_BD[row]
        for position, layer in enumerate(module.layers):
            if position in layers:
                choice = int(layers[position].drawn_BT[row, task])
                experts = layers[position].choices
                hidden = hidden @ experts.weight_EDH[choice] + experts.bias_E1H[choice, 0]
            else:
                hidden = layer.get_submodule("linear")(hidden)
            hidden = hidden.clamp(min=0.0)
        # Some float32 roundings: the batched products sum in another order.
        torch.testing.assert_close(fused_BTH[row, task], hidden, atol=1e-6, rtol=1e-5)


def test_only_drawn_modules_are_computed_and_learn() -> None:
    module = network()
    for layer in module.routed_layers().values():
        layer.policy_TM.copy_(torch.tensor([[50.0, 0.0, 0.0], [50.0, 0.0, 0.0], [0.0, 50.0, 0.0]]))
        # Were the third module computed for any row, its NaN would show.
        with torch.no_grad():
            layer.choices.weight_EDH[2] = torch.nan
    module(rows_of(40)).sum().backward()
    for layer in module.routed_layers().values():
        gradient_EDH = layer.choices.weight_EDH.grad
        assert gradient_EDH is not None
        assert gradient_EDH[0].any()
        assert gradient_EDH[1].any()
        assert not gradient_EDH[2].any()
        assert layer.policy_TM.grad is None


@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches(rows: int) -> None:
    assert network()(rows_of(rows)).shape == (rows, TASKS, 4)


def test_draws_follow_the_policy() -> None:
    module = network(levels=[4])
    (layer,) = module.routed_layers().values()
    table = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0], [-1.0, 3.0, 0.0]])
    layer.policy_TM.copy_(table)
    module.next_seed = 5
    module(rows_of(6000))
    for task, chances in enumerate(torch.softmax(table, dim=1)):
        counts = torch.bincount(layer.drawn_BT[:, task], minlength=3).numpy()
        # A right sampler fails one seed in a thousand. This seed is fixed.
        assert chisquare(counts, 6000 * chances.double().numpy() / float(chances.double().sum())).pvalue > 1e-3
    # Tasks draw each for itself.
    joint = np.histogram2d(layer.drawn_BT[:, 0].numpy(), layer.drawn_BT[:, 1].numpy(), bins=3)[0]
    expected = np.outer(joint.sum(axis=1), joint.sum(axis=0)) / 6000
    assert chisquare(joint.ravel(), expected.ravel(), ddof=4).pvalue > 1e-3


def test_draws_are_the_seeds() -> None:
    module, rows_BD = network(), rows_of(64)
    outputs: list[Tensor] = []
    for position, seed in enumerate((7, 7, 8)):
        module.next_seed = seed
        torch.manual_seed(position)
        outputs.append(module(rows_BD))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_warm_up_shares_every_module_among_tasks_and_trains_them_all() -> None:
    module = network()
    module.is_warm_up = True
    fused_BTH = module(rows_of(60))
    assert torch.equal(fused_BTH[:, 0], fused_BTH[:, 1])
    assert torch.equal(fused_BTH[:, 0], fused_BTH[:, 2])
    for layer in module.routed_layers().values():
        assert set(layer.drawn_BT.flatten().tolist()) == {0, 1, 2}


def test_policies_start_even_and_evaluation_is_shared_then() -> None:
    module = network()
    assert policy_perplexities(module) == pytest.approx({0: 3.0, 1: 3.0})
    fused_BTH = module.eval()(rows_of(5))
    assert torch.equal(fused_BTH[:, 0], fused_BTH[:, 2])
    assert policy_perplexities(CASES["shared-bottom"].build()) == {}


def test_perplexity_by_hand() -> None:
    module = network(levels=[4], policy="clip")
    (layer,) = module.routed_layers().values()
    layer.policy_TM.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]))
    # exp of the entropies 0, log 2 and 1.5 log 2.
    assert policy_perplexities(module)[0] == pytest.approx((1 + 2 + 2**1.5) / 3)


def test_projection_lands_on_the_simplex() -> None:
    tables = torch.randn(500, 5, generator=torch.Generator().manual_seed(0)).double() * 2
    found = simplex_projection(tables)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(500).double())
    # A point of the simplex stays, and so does the order of what is not clipped.
    torch.testing.assert_close(simplex_projection(found), found)
    assert (found.gather(1, tables.argmax(dim=1, keepdim=True)) == found.max(dim=1, keepdim=True).values).all()
    made = torch.tensor([[1.5, 0.5, -0.3], [-1.0, -2.0, 0.0]])
    torch.testing.assert_close(simplex_projection(made), torch.tensor([[2 / 3, 1 / 3, 0.0], [1 / 3, 1 / 3, 1 / 3]]))


def test_the_published_projection_explodes_where_a_policy_is_even() -> None:
    even = torch.full((1, 4), 0.25, dtype=torch.float64, requires_grad=True)
    chances = published_projection(even)
    torch.testing.assert_close(chances.detach(), torch.full((1, 4), 0.25).double())
    (gradient,) = torch.autograd.grad(chances[0, 1], even)
    # By hand the quotient's derivative at an entry that is not the least: (S - eps) / S^2 with S = 4 eps.
    assert gradient.abs().max() > 0.1 / PUBLISHED_EPSILON
    # Softmax at the same place: p (1 - p).
    (gentle,) = torch.autograd.grad(torch.softmax(even, dim=1)[0, 1], even)
    assert gentle.abs().max() == pytest.approx(0.25 * 0.75)
    # A hair from even, and a module is gone.
    nearly = torch.tensor([[0.25, 0.2501, 0.2502, 0.2503]], dtype=torch.float64)
    assert published_projection(nearly)[0, 0] < 0.002
    assert simplex_projection(nearly)[0, 0] > 0.249


@pytest.mark.parametrize("kind", ["softmax", "clip", "as_published"])
def test_tables_of_every_kind_stand_for_distributions(kind: str) -> None:
    table = simplex_projection(torch.rand(20, 4, generator=torch.Generator().manual_seed(1)))
    chances = probabilities(table, kind)
    assert (chances >= 0).all()
    torch.testing.assert_close(chances.sum(dim=1), torch.ones(20))
    assert torch.equal(chances.argmax(dim=1), table.argmax(dim=1)), "evaluation takes the most probable module"
