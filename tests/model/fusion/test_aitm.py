"""AITM: which task learns of which, and what an explanation says of it."""

import pytest
import torch
from torch import Tensor

from model.fusion import AITM, AITMConfig, build_network
from model.fusion.names import mixed_names
from tests.model.fusion.cases import INPUT_WIDTH, Case, rows_of

CONFIG = AITMConfig(kind="aitm", levels=(20, 20))
# click; returns, given buy; share, given none; buy, given click.
GIVEN = (None, 3, None, 0)


def network(seed: int = 0) -> AITM:
    torch.manual_seed(seed)
    return CONFIG.build(INPUT_WIDTH, 4, GIVEN)


def test_a_task_learns_of_its_chain_up_to_the_beginning_and_of_no_other() -> None:
    module = network()
    slots = module.slots(["click", "returns", "share", "buy"])
    reached = []
    for task in range(4):
        module.zero_grad()
        module(rows_of(200))[:, task].square().sum().backward()
        first = module.experts.first[0].weight
        assert isinstance(first, Tensor)
        assert first.grad is not None
        reached.append([bool(part.any()) for part in torch.split(first.grad, 20)])
    assert reached == [
        [True, False, False, False],
        [True, True, False, True],
        [False, False, True, False],
        [True, False, False, True],
    ]
    received = sorted(name for name in slots if name.startswith("transfer."))
    parts = ("inform.bias", "inform.weight", "key.weight", "query.weight", "value.weight")
    assert received == [f"transfer.{task}.{part}" for task in ("buy", "returns") for part in parts]


def test_weights_are_a_task_s_own_and_that_of_the_task_it_is_given() -> None:
    module = network()
    (weights_BTT,) = module.expert_weights(rows_of(50))
    torch.testing.assert_close(weights_BTT.sum(dim=2), torch.ones(50, 4))
    assert (weights_BTT > 0).all(dim=0).tolist() == [
        [True, False, False, False],
        [False, True, False, True],
        [False, False, True, False],
        [True, False, False, True],
    ]
    # Attention, not a constant.
    assert weights_BTT[:, 3, 0].std() > 1e-3
    ((units, experts),) = mixed_names(CONFIG, module.frozen(4), ["click", "returns", "share", "buy"])
    assert units == ["click", "returns", "share", "buy"]
    assert experts == ["click.1", "returns.1", "share.1", "buy.1"]


def test_a_network_without_a_chain_is_refused() -> None:
    for given in ((), (None, None)):
        with pytest.raises(ValueError, match="aitm transfers along chains of tasks, and no task is given another"):
            build_network(CONFIG, INPUT_WIDTH, 2, given)


def test_a_single_linear_may_follow_as_in_the_paper() -> None:
    case = Case({"kind": "aitm", "levels": [6, 4]}, 2, given=(None, 0))
    layers = [list(tower.children()) for tower in case.network(()).towers]
    assert [len(list(tower[0].children())) for tower in layers] == [1, 1]
