"""Every fusion network against its equations written out by loops: outputs, logits behind towers, gradients."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tests.model.fusion import test_adatt
from tests.model.fusion.cases import CASES, Case, rows_of
from tests.model.fusion.equations import linear_of, mlp, reference
from tests.model.fusion.plain import products

# AdaTT's outputs and gradients have loops of their own (test_adatt.py). Its logits are here.
OTHERS = {name: case for name, case in CASES.items() if not case.kind.startswith("adatt")}
other_networks = pytest.mark.parametrize("case", OTHERS.values(), ids=OTHERS.keys())
all_networks = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
Array = NDArray[np.float64]


def numbers_of(module: nn.Module) -> dict[str, Array]:
    """The parameters by name, in float64."""
    return {name: value.detach().double().numpy() for name, value in module.named_parameters()}


def fused_by_loops(case: Case, state: dict[str, Array], rows_BD: Array) -> Array:
    """fused_BTH of the equations, evaluated by numpy in float64."""
    if not case.kind.startswith("adatt"):
        return np.array(reference(case, state, rows_BD, np.exp))
    levels = tuple(tuple(widths) for widths in case.levels)
    same = test_adatt.Case(case.kind, levels, tuple(case.per_task), case.tasks, case.shared)
    return test_adatt.reference(same, state, rows_BD)


@other_networks
def test_output_is_that_of_the_equations(case: Case) -> None:
    module, rows_BD = case.build(), rows_of(9)
    expected = fused_by_loops(case, numbers_of(module), rows_BD.double().numpy())
    # A few hundred float32 products of order 1: rounding stays below 5e-6.
    np.testing.assert_allclose(module(rows_BD).detach().numpy(), expected, atol=5e-6, rtol=0)
    # In float64 the order of the sums is the only difference, so a term too many or too few cannot hide.
    np.testing.assert_allclose(module.double()(rows_BD.double()).detach().numpy(), expected, atol=1e-13, rtol=0)


@all_networks
def test_logits_behind_the_towers_are_those_of_the_equations(case: Case) -> None:
    """Tower = hidden Linear and ReLU, then one Linear to a raw logit. Nothing between fusion and tower."""
    torch.manual_seed(5)
    network = case.network((6, 3)).eval()
    rows_BD, state = rows_of(8), numbers_of(network)
    fusion = {name.removeprefix("fusion."): value for name, value in state.items() if name.startswith("fusion.")}
    fused_BTH = fused_by_loops(case, fusion, rows_BD.double().numpy())
    logits_BO = np.empty(fused_BTH.shape[:2])
    for row, task in np.ndindex(*logits_BO.shape):
        hidden, last = [linear_of(state, f"towers.{task}.layers.{at}") for at in (0, 2)], f"towers.{task}.layers.4"
        logits_BO[row, task] = (state[f"{last}.weight"] @ mlp(hidden, fused_BTH[row, task]) + state[f"{last}.bias"])[0]
    expected = products(torch.from_numpy(logits_BO), case.given).numpy()
    np.testing.assert_allclose(network(rows_BD).detach().numpy(), expected, atol=5e-6, rtol=0)


@other_networks
def test_gradients_are_those_of_the_equations(case: Case) -> None:
    """Of every number of every parameter and input, against the loops in float64 under autograd."""
    module, rows_BD = case.build(), rows_of(6).requires_grad_()
    fused_BTH = module(rows_BD)
    cotangent_BTH = torch.from_numpy(np.random.default_rng(2).normal(size=fused_BTH.shape))
    (fused_BTH * cotangent_BTH).sum().backward()
    inputs = rows_BD.detach().double().requires_grad_()
    state = {name: value.detach().double().requires_grad_() for name, value in module.named_parameters()}
    looped = torch.stack([torch.stack(tasks) for tasks in reference(case, state, inputs, torch.exp)])
    torch.autograd.backward((looped * cotangent_BTH).sum())
    for name, mine, theirs in [
        ("rows", rows_BD, inputs),
        # A policy is not learned by gradients of the loss.
        *((name, value, state[name]) for name, value in module.named_parameters() if value.requires_grad),
    ]:
        assert mine.grad is not None, f"{name} takes no part in the output"
        assert theirs.grad is not None, f"{name} is in no equation"
        # 1e-4 relative. Numbers that cancel to almost nothing carry the rounding of the largest beside them.
        floor = 1e-5 * float(theirs.grad.abs().max()) + 1e-9
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=floor, msg=name)
