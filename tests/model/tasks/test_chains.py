"""Logits along chains of tasks against products of probabilities, computed with 60 decimal digits."""

import io
import itertools
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from model.ranker import Network, NetworkConfig
from model.tasks.chains import Chains, product_logit

# Both tails, where 1 - p or p alone rounds to 0 in float32, and the middle.
LOGITS = [-2000.0, -300.0, -88.7, -30.0, -9.3, -2.5, -0.5, 0.0, 0.1, 1.0, 4.2, 16.7, 17.4, 40.0, 89.0, 500.0]


def exactly(given: float, conditional: float) -> tuple[float, float, float]:
    """Logit of the product p of two probabilities, and its derivatives by either logit.

    By the logit of a factor a it is (1 - a) / (1 - p)."""
    with localcontext() as context:
        context.prec = 60 + int(max(given, 0) + max(conditional, 0))
        a, b = (1 / (1 + Decimal(-logit).exp()) for logit in (given, conditional))
        p = a * b
        return float((p / (1 - p)).ln()), float((1 - a) / (1 - p)), float((1 - b) / (1 - p))


@pytest.fixture(scope="module")
def pairs() -> list[tuple[float, float]]:
    return list(itertools.product(LOGITS, LOGITS))


def test_a_product_logit_and_its_gradient_are_exact_from_end_to_end(pairs: list[tuple[float, float]]) -> None:
    inputs_PI = torch.tensor(pairs, requires_grad=True)
    # As float32 has them.
    expected = np.array([exactly(*pair) for pair in inputs_PI.tolist()])
    logits_P = product_logit(inputs_PI[:, 0], inputs_PI[:, 1])
    # Relative where numbers are large: a float32 has 24 bits.
    np.testing.assert_allclose(logits_P.detach().numpy(), expected[:, 0], atol=5e-6, rtol=1e-6)
    logits_P.sum().backward()  # type: ignore[no-untyped-call]
    assert inputs_PI.grad is not None
    np.testing.assert_allclose(inputs_PI.grad.numpy(), expected[:, 1:], atol=1e-7, rtol=1e-4)


def test_a_product_is_never_above_a_factor(pairs: list[tuple[float, float]]) -> None:
    inputs_PI = torch.tensor(pairs)
    assert (product_logit(*inputs_PI.unbind(1)) <= inputs_PI.min(dim=1).values).all()


# By task the one that it is given, and how many outputs each has. Tasks stand in any order, chains meet in one task.
SCHEMAS = [
    ((None, 0), (1, 1)),
    ((1, None), (1, 1)),
    ((2, 0, None), (1, 1, 1)),
    ((None, None, 0, None, 2, 0), (1, 3, 1, 1, 1, 1)),
]


def by_loops(logits_BO: Tensor, given: tuple[int | None, ...], counts: tuple[int, ...]) -> np.ndarray:
    """Logits of the products, task by task, in float64."""
    starts = np.cumsum([0, *counts])
    logits = logits_BO.double().numpy().copy()
    for task, other in enumerate(given):
        if other is None:
            continue
        probability = np.ones(len(logits))
        one: int | None = task
        while one is not None:
            probability /= 1 + np.exp(-logits_BO.double().numpy()[:, starts[one]])
            one = given[one]
        logits[:, starts[task]] = np.log(probability / (1 - probability))
    return logits


@pytest.mark.parametrize(("given", "counts"), SCHEMAS)
def test_chains_multiply_every_factor_and_leave_other_outputs(
    given: tuple[int | None, ...], counts: tuple[int, ...]
) -> None:
    chains = Chains(given, counts)
    logits_BO = 3 * torch.randn(50, sum(counts), generator=torch.Generator().manual_seed(0))
    got = chains(logits_BO)
    np.testing.assert_allclose(got.numpy(), by_loops(logits_BO, given, counts), atol=5e-6, rtol=1e-6)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(chains), file)
    file.seek(0)
    again = torch.jit.load(file)  # type: ignore[no-untyped-call]
    for _ in range(3):
        assert torch.equal(again(logits_BO), got)


def test_without_chains_nothing_is_computed() -> None:
    logits_BO = torch.randn(3, 4)
    assert Chains((), (1, 2, 1))(logits_BO) is logits_BO
    assert Chains((None, None), (1, 3))(logits_BO) is logits_BO


def test_products_of_an_autocast_are_float32() -> None:
    logits_BO = torch.tensor([[3.0, -1.0, 2.0]], dtype=torch.bfloat16)
    got = Chains((None, 0, 1), (1, 1, 1))(logits_BO)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, by_loops(logits_BO, (None, 0, 1), (1, 1, 1)), atol=5e-6)


def test_a_network_answers_products_of_its_towers() -> None:
    config = NetworkConfig.from_mapping({"fusion": {"kind": "shared_bottom", "levels": [6]}, "tower": [4]}, "test")
    torch.manual_seed(0)
    network = Network(config, 5, (1, 2, 1), (2, None, None))
    rows_BD = torch.randn(9, 5)
    fused_BTH = network.fusion(rows_BD)
    towers = torch.cat([tower(fused_BTH[:, task]) for task, tower in enumerate(network.towers)], dim=1).detach()
    expected = by_loops(towers, (2, None, None), (1, 2, 1))
    np.testing.assert_allclose(network(rows_BD).detach().numpy(), expected, atol=5e-6)
    assert network.towers_of(0) == [network.towers[0], network.towers[2]]
    assert network.towers_of(2) == [network.towers[2]]
