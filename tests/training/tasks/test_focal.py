"""Focal losses against float64 loops and finite differences, and what they do to the best answer."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

from model.schema import FeedSchema
from training.step.balancing.losses import TaskLosses

Floats = NDArray[np.float64]
# The parity that networks are held to: float32 against float64.
PARITY, GRADIENTS = 5e-6, 1e-4
TERMS = ({"weight": 0.5}, None, {"weight": 2.0, "gamma": 0.5, "alpha": 0.8})


def schema(*terms: object, **more: object) -> FeedSchema:
    tasks = [
        {"name": f"t{n}", "kind": "binary", "label": f"l{n}", **({} if term is None else {"focal": term}), **more}
        for n, term in enumerate(terms)
    ]
    features = [{"name": "x", "side": "candidate", "kind": "number"}]
    return FeedSchema.from_mapping({"name": "focal", "features": features, "tasks": tasks}, "test")


def by_loop(logits: Floats, targets: Floats, offsets: list[float]) -> list[float]:
    """Means of cross entropy and focal loss, in float64, as they are printed in the publication."""
    means = []
    for task, term in enumerate(TERMS):
        total = 0.0
        for logit, target in zip(logits[:, task] + offsets[task], targets[:, task], strict=True):
            q = 1 / (1 + np.exp(-logit if target else logit))
            total -= np.log(q)
            if term is not None:
                alpha = term.get("alpha")
                weight = 1.0 if alpha is None else alpha if target else 1 - alpha
                total -= term["weight"] * weight * (1 - q) ** term.get("gamma", 2.0) * np.log(q)
        means.append(total / len(logits))
    return means


@pytest.mark.parametrize("offsets", [[0.0, 0.0, 0.0], [-1.5, 0.0, 0.7]])
def test_losses_and_gradients_are_those_of_a_loop(offsets: list[float]) -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 2, (40, 3)), rng.integers(0, 2, (40, 3)).astype(float)
    losses = TaskLosses(schema(*TERMS), offsets=offsets)
    logits_BO = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    losses_T = losses(logits_BO, torch.tensor(targets, dtype=torch.float32), torch.ones(40, 3))
    np.testing.assert_allclose(losses_T.detach().numpy(), by_loop(logits, targets, offsets), rtol=PARITY, atol=PARITY)
    losses_T.sum().backward()
    assert logits_BO.grad is not None
    for row in range(5):
        for task in range(3):
            ends = []
            for step in (1e-6, -1e-6):
                moved = logits.copy()
                moved[row, task] += step
                ends.append(sum(by_loop(moved, targets, offsets)))
            slope = (ends[0] - ends[1]) / 2e-6
            assert float(logits_BO.grad[row, task]) == pytest.approx(slope, abs=GRADIENTS)


@pytest.mark.parametrize("gamma", [0.1, 1.0, 5.0])
def test_saturated_logits_have_finite_gradients(gamma: float) -> None:
    logits_BO = torch.tensor([[90.0], [-90.0], [90.0], [-90.0]], requires_grad=True)
    targets_BT = torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    losses_T = TaskLosses(schema({"weight": 1.0, "gamma": gamma}))(logits_BO, targets_BT, torch.ones(4, 1))
    losses_T.sum().backward()
    # Two rows are right beyond doubt and cost nothing. Two are wrong by 90 nats, in both losses.
    assert float(losses_T.detach()) == pytest.approx(2 * 2 * 90 / 4, rel=1e-5)
    assert logits_BO.grad is not None
    np.testing.assert_allclose(logits_BO.grad[:, 0].numpy(), [0, 0, 0.5, -0.5], atol=1e-5)


def best_constant(losses: TaskLosses, rate: float) -> float:
    targets_BT = torch.tensor([[1.0], [0.0]])
    weights_B = torch.tensor([rate, 1 - rate])

    def value(logit: float) -> float:
        return float(losses(torch.full((2, 1), logit), targets_BT, torch.ones(2, 1), weights_B))

    return float(expit(minimize_scalar(value, bounds=(-8, 8), method="bounded", options={"xatol": 1e-3}).x))


def test_the_best_answer_moves_towards_one_half() -> None:
    """The figures of docs/training.md. A minimum is flat, so float32 leaves some hundredths of it open."""
    for rate, expected in ((0.03, 0.063), (0.1, 0.18)):
        plain, focal = (best_constant(TaskLosses(schema(term)), rate) for term in (None, {"weight": 1.0}))
        assert plain == pytest.approx(rate, rel=0.02)
        assert focal == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"gamma": 2.0}, "focal.weight"),
        ({"weight": 0}, "focal.weight"),
        ({"weight": float("nan")}, "focal.weight"),
        ({"weight": 1, "gamma": 0}, "focal.gamma"),
        ({"weight": 1, "alpha": 1}, "focal.alpha"),
        ({"weight": 1, "gama": 1}, "did you mean 'gamma'"),
    ],
)
def test_a_term_that_is_none_is_refused(term: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schema(term)


def test_a_positive_weight_beside_it_is_refused() -> None:
    with pytest.raises(ValueError, match=r"positive_weight \(3\) keeps answers calibrated"):
        schema({"weight": 1.0}, positive_weight=3.0)
