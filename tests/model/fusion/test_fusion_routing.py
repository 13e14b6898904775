"""Fixed random routing: what is drawn, from what, and what is computed once."""

import random

import pytest
import torch
from scipy.stats import chisquare

from model.fusion.routing import FixedRandomRoutingConfig, FixedRouting
from tests.model.fusion.cases import INPUT_WIDTH, rows_of

KIND = "fixed_random_routing"


def config(num_modules: int, seed: int = 0, routed: tuple[int, ...] | None = None) -> FixedRandomRoutingConfig:
    """Three layers."""
    return FixedRandomRoutingConfig(kind=KIND, levels=(6, (5, 4)), num_modules=num_modules, routed=routed, seed=seed)


def test_routes_are_the_seeds_and_of_nothing_else() -> None:
    expected = config(5, seed=3).routes(8)
    torch.manual_seed(99)
    random.seed(99)
    torch.rand(3)
    random.random()
    assert config(5, seed=3).routes(8) == expected
    assert config(5, seed=4).routes(8) != expected


def test_drawing_routes_leaves_the_global_generators_alone() -> None:
    random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), torch.rand(1)
    random.seed(1)
    torch.manual_seed(1)
    config(5).routes(8)
    assert (random.random(), torch.rand(1)) == expected


@pytest.mark.parametrize("routed", [None, (), (1,), (0, 2)])
def test_layers_that_are_not_routed_have_one_module(routed: tuple[int, ...] | None) -> None:
    routes = config(1000, routed=routed).routes(6)
    assert len(routes) == 3
    for layer, modules in enumerate(routes):
        assert len(modules) == 6
        # Six draws of 1000 are all the same once in 10^15 seeds.
        assert (len(set(modules)) > 1) == (routed is None or layer in routed)


def test_modules_are_drawn_alike_often_and_layer_by_layer() -> None:
    routes = [config(3, seed=seed).routes(4) for seed in range(600)]
    for layer in range(3):
        drawn = [module for route in routes for module in route[layer]]
        assert chisquare([drawn.count(module) for module in range(3)]).pvalue > 0.01
    for task in range(4):
        pairs = [(route[0][task], route[1][task]) for route in routes]
        counts = [pairs.count((first, second)) for first in range(3) for second in range(3)]
        assert chisquare(counts).pvalue > 0.01, "a task's layers are not drawn apart"


def test_modules_that_no_task_drew_are_not_built() -> None:
    network = FixedRouting(INPUT_WIDTH, [6, 4], [[7, 2, 7], [1, 1, 1]])
    expected = 2 * (INPUT_WIDTH + 1) * 6 + (6 + 1) * 4
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_tasks_part_where_their_routes_part_and_may_use_one_module_on_different_inputs() -> None:
    """Routes (0, 0), (0, 1), (1, 1): tasks 1 and 2 share the last module but not what goes in. 0 and 1 the first."""
    torch.manual_seed(0)
    network = FixedRouting(INPUT_WIDTH, [6, 4], [[0, 0, 1], [0, 1, 1]])
    first, last = ([torch.nn.Sequential(linear, torch.nn.ReLU()) for linear in layer.linears]  # type: ignore[union-attr]
                   for layer in network.layers)  # fmt: skip
    rows_BD = rows_of(9)
    expected = [last[0](first[0](rows_BD)), last[1](first[0](rows_BD)), last[1](first[1](rows_BD))]
    torch.testing.assert_close(network(rows_BD), torch.stack(expected, dim=1), atol=1e-6, rtol=0)


def test_tasks_with_the_same_route_are_computed_once() -> None:
    """Ten tasks on two routes cost what two cost: counted in rows that the modules see."""
    network = FixedRouting(INPUT_WIDTH, [6, 4], [[0, 1] * 5, [1, 1] * 5])
    seen: list[int] = []
    for layer in network.layers:
        for linear in layer.linears:  # type: ignore[union-attr]
            linear.register_forward_hook(lambda module, args, output: seen.append(output.numel() // output.shape[-1]))
    assert network(rows_of(3)).shape == (3, 10, 4)
    assert seen == [3, 3, 6]
