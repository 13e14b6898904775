"""Losses against numpy by hand: masks, weights, and tasks without any label in the batch."""

import numpy as np
import pytest
import torch
import yaml

from model.schema import FeedSchema
from training.step.balancing.losses import TaskLosses

SCHEMA = FeedSchema.from_mapping(
    yaml.safe_load("""
name: losses
features: [{name: x, side: candidate, kind: number}]
tasks:
  - {name: click, kind: binary,     label: a}
  - {name: like,  kind: binary,     label: b, loss_weight: 3.0}
  - {name: watch, kind: regression, label: c, loss_weight: 0.5}
  - {name: depth, kind: regression, label: d, loss_weight: 0.0}
"""),
    "test",
)


def by_hand(logits: np.ndarray, targets: np.ndarray, observed: np.ndarray) -> list[float]:
    """A plain loop in float64."""
    means = []
    for task in range(logits.shape[1]):
        losses = []
        for logit, target, counts in zip(logits[:, task], targets[:, task], observed[:, task], strict=True):
            if counts and task < 2:
                probability = 1.0 / (1.0 + np.exp(-logit))
                losses.append(-(target * np.log(probability) + (1 - target) * np.log(1 - probability)))
            elif counts:
                losses.append((logit - target) ** 2)
        means.append(float(np.mean(losses)) if losses else 0.0)
    return means


@pytest.mark.parametrize("observed_share", [1.0, 0.5, 0.05, 0.0])
def test_losses_are_means_over_the_observed_rows(observed_share: float) -> None:
    rng = np.random.default_rng(int(observed_share * 100))
    logits, observed = rng.normal(0, 3, (12, 4)), (rng.random((12, 4)) < observed_share).astype(float)
    targets = np.concatenate([rng.integers(0, 2, (12, 2)).astype(float), rng.normal(0, 2, (12, 2))], axis=1)
    losses = TaskLosses(SCHEMA)
    losses_T = losses(*(torch.tensor(array, dtype=torch.float32) for array in (logits, targets, observed)))
    expected = by_hand(logits, targets, observed)
    # float32 against float64: a few units in the last place of values around 10.
    np.testing.assert_allclose(losses_T.numpy(), expected, rtol=1e-5, atol=1e-6)
    total = expected[0] + 3.0 * expected[1] + 0.5 * expected[2]
    assert float(losses.total(losses_T)) == pytest.approx(total, rel=1e-5, abs=1e-6)


def test_what_is_not_observed_has_no_gradient() -> None:
    logits_BO = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    observed_BT = torch.tensor([[1.0, 0.0, 1.0, 1.0]] * 3 + [[0.0, 1.0, 0.0, 1.0]] * 3)
    losses = TaskLosses(SCHEMA)
    losses.total(losses(logits_BO, torch.ones(6, 4), observed_BT)).backward()  # type: ignore[no-untyped-call]
    assert logits_BO.grad is not None
    weighted_BT = observed_BT * torch.tensor([1.0, 1.0, 1.0, 0.0])  # the last task has loss_weight 0
    assert torch.equal(logits_BO.grad != 0, weighted_BT > 0)


def test_the_gradient_of_a_binary_logit_is_probability_minus_label() -> None:
    logits_BO = torch.tensor([[0.7, 0.0, 0.0, 0.0], [-1.2, 0.0, 0.0, 0.0]], requires_grad=True)
    targets_BT = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    TaskLosses(SCHEMA)(logits_BO, targets_BT, torch.ones(2, 4))[0].backward()
    assert logits_BO.grad is not None
    probabilities = 1.0 / (1.0 + np.exp(-np.array([0.7, -1.2])))
    np.testing.assert_allclose(logits_BO.grad[:, 0].numpy(), (probabilities - [1.0, 0.0]) / 2, rtol=1e-5)


def test_row_weights_make_weighted_means() -> None:
    rng = np.random.default_rng(5)
    logits, observed = rng.normal(0, 3, (12, 4)), (rng.random((12, 4)) < 0.6).astype(float)
    targets = np.concatenate([rng.integers(0, 2, (12, 2)).astype(float), rng.normal(0, 2, (12, 2))], axis=1)
    weights = rng.uniform(0, 0.02, 12) * (rng.random(12) < 0.8)  # their sum lies below 1
    observed[:, 1] *= weights == 0  # every row of this task weighs nothing
    arrays = (torch.tensor(array, dtype=torch.float32) for array in (logits, targets, observed, weights))
    losses_T = TaskLosses(SCHEMA)(*arrays).numpy()
    rows = [by_hand(logits[[row]], targets[[row]], np.ones((1, 4))) for row in range(12)]
    for task in (0, 2, 3):
        counts = weights * observed[:, task]
        expected = np.average([row[task] for row in rows], weights=counts)
        np.testing.assert_allclose(losses_T[task], expected, rtol=1e-5)
    assert losses_T[1] == 0


def test_equal_row_weights_change_nothing_but_rounding() -> None:
    generator = torch.Generator().manual_seed(1)
    logits_BO, targets_BT = torch.randn(9, 4, generator=generator), torch.ones(9, 4)
    observed_BT = (torch.rand(9, 4, generator=generator) < 0.7).float()
    losses = TaskLosses(SCHEMA)
    torch.testing.assert_close(
        losses(logits_BO, targets_BT, observed_BT, torch.full((9,), 0.25)), losses(logits_BO, targets_BT, observed_BT)
    )


def weighted(positive_weight: float) -> TaskLosses:
    tasks = [{"name": "click", "kind": "binary", "label": "a", "positive_weight": positive_weight}]
    features = [{"name": "x", "side": "candidate", "kind": "number"}]
    return TaskLosses(FeedSchema.from_mapping({"name": "rare", "features": features, "tasks": tasks}, "test"))


def test_a_positive_weight_counts_positives_that_often_at_the_shifted_logit() -> None:
    logits = np.array([0.7, -1.2, 2.0])
    targets = np.array([1.0, 0.0, 1.0])
    inputs = (torch.tensor(array, dtype=torch.float32).unsqueeze(1) for array in (logits, targets, np.ones(3)))
    probabilities = 1 / (1 + np.exp(-(logits + np.log(5.0))))
    expected = np.mean(np.where(targets > 0, -5 * np.log(probabilities), -np.log(1 - probabilities)))
    np.testing.assert_allclose(weighted(5.0)(*inputs).numpy(), [expected], rtol=1e-5)


@pytest.mark.parametrize("positive_weight", [0.2, 1.0, 20.0])
def test_a_positive_weight_leaves_the_best_constant_at_the_base_rate(positive_weight: float) -> None:
    targets_BT = torch.tensor([[1.0]] * 3 + [[0.0]] * 97)
    losses = weighted(positive_weight)
    logits = torch.linspace(-5, -2, 301)
    values = [float(losses(logit.expand(100, 1), targets_BT, torch.ones(100, 1))) for logit in logits]
    assert float(logits[int(np.argmin(values))]) == pytest.approx(np.log(0.03 / 0.97), abs=0.01)  # the grid's step


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), "many"])
def test_a_positive_weight_that_is_no_weight_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="positive_weight"):
        weighted(value)  # type: ignore[arg-type]


def test_targets_far_from_zero_and_saturated_logits_stay_finite() -> None:
    logits_BO = torch.tensor([[200.0, -200.0, 0.0, 0.0]], requires_grad=True)
    targets_BT = torch.tensor([[0.0, 1.0, 1e6, -5.0]])
    losses_T = TaskLosses(SCHEMA)(logits_BO, targets_BT, torch.ones(1, 4))
    np.testing.assert_allclose(losses_T.detach().numpy(), [200.0, 200.0, 1e12, 25.0], rtol=1e-6)
    losses_T.sum().backward()
    assert logits_BO.grad is not None
    assert torch.isfinite(logits_BO.grad).all()
