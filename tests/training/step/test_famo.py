"""FAMO against numpy in float64: factors, the steps of its weights, tasks that are silent for a batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.ranker import Network, NetworkConfig
from model.schema import FeedSchema
from tests.training_data import training_file, write_feed
from training.config import TrainingConfig
from training.run.history import read_log
from training.step.balancing import FAMO
from training.step.balancing.famo import FAMOConfig
from training.step.balancing.losses import TaskLosses
from training.train import train

Floats = NDArray[np.float64]
LOSS_WEIGHTS = [1.0, 2.0, 0.5, 0.0]
RATE, DECAY = 0.1, 0.01
# float32 against float64, of a few products.
CLOSE = 1e-5


def new_famo() -> FAMO:
    tasks = [
        {"name": f"t{n}", "kind": "binary", "label": "a", "loss_weight": weight}
        for n, weight in enumerate(LOSS_WEIGHTS)
    ]
    features = [{"name": "x", "side": "candidate", "kind": "number"}]
    schema = FeedSchema.from_mapping({"name": "famo", "features": features, "tasks": tasks}, "test")
    return FAMOConfig(kind="famo", learning_rate=RATE, decay=DECAY).build(TaskLosses(schema), 0)


def softmax(values: Floats) -> Floats:
    grown: Floats = np.exp(values - values.max())
    shares: Floats = grown / grown.sum()
    return shares


class Step:
    """One step of FAMO on given losses, and what it left."""

    def __init__(self, famo: FAMO, losses: Floats) -> None:
        losses_T = torch.tensor(losses, dtype=torch.float32, requires_grad=True)
        self.total = famo.total(losses_T)
        network = Network(NetworkConfig.from_mapping({"fusion": {"kind": "shared_bottom", "levels": [2]}}, ""), 1, (1,))
        famo.backward(losses_T, self.total, torch.zeros(1, 1), network, 0)
        assert losses_T.grad is not None
        assert famo.share_logits_T.grad is not None
        self.factors = losses_T.grad.numpy()
        self.slopes = famo.share_logits_T.grad.numpy()


def test_three_steps_by_hand() -> None:
    """Algorithm 1 over the tasks with a loss weight, with Adam in numpy."""
    famo = new_famo()
    adam = torch.optim.Adam(famo.parameters(), lr=RATE)
    history = np.array([[0.6, 0.2, 1.7, 4.0], [0.5, 0.21, 1.0, 3.0], [0.52, 0.15, 0.4, 2.0]])
    weights, first, second = np.zeros(3), np.zeros(3), np.zeros(3)
    for number, losses in enumerate(history):
        step = Step(famo, losses)
        heard = losses[:3]
        shares = softmax(weights)
        factors = 3 * (shares / heard) / (shares / heard).sum()
        np.testing.assert_allclose(step.factors, [*(factors * LOSS_WEIGHTS[:3]), 0.0], rtol=CLOSE)
        np.testing.assert_allclose(famo.learned_weights()[:3].numpy(), factors, rtol=CLOSE)
        # The parts of the direction are the shares, of log losses.
        parts = step.factors[:3] / LOSS_WEIGHTS[:3] * heard
        np.testing.assert_allclose(parts / parts.sum(), shares, rtol=CLOSE)
        slopes = np.zeros(3)
        if number:
            fall = np.log(history[number - 1, :3]) - np.log(heard)
            jacobian = np.diag(shares) - np.outer(shares, shares)
            slopes = jacobian.T @ fall + DECAY * weights
        np.testing.assert_allclose(step.slopes, [*slopes, 0.0], rtol=1e-4, atol=1e-7)
        adam.step()
        first, second = 0.9 * first + 0.1 * slopes, 0.999 * second + 0.001 * slopes**2
        corrected = first / (1 - 0.9 ** (number + 1)), second / (1 - 0.999 ** (number + 1))
        weights = weights - RATE * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
        np.testing.assert_allclose(famo.share_logits_T[:3].detach().numpy(), weights, rtol=1e-4, atol=1e-6)
    # The third task fell furthest, so it has the least weight now.
    assert int(np.argmin(weights)) == 2
    assert weights.max() > 0


def test_a_silent_task_waits_for_its_next_batch() -> None:
    famo = new_famo()
    Step(famo, np.array([0.6, 0.2, 1.7, 4.0]))
    silent = Step(famo, np.array([0.5, 0.0, 1.6, 0.0]))
    assert (silent.factors[1], silent.slopes[1]) == (0, 0)
    assert float(famo.learned_weights().sum()) == pytest.approx(2, rel=CLOSE)
    back = Step(famo, np.array([0.5, 0.1, 1.6, 0.0]))
    # It halved since it was heard last. The others stood still.
    assert back.slopes[1] > 0
    assert back.slopes[1] == pytest.approx(np.log(2) * (1 / 3) * (2 / 3), rel=1e-4)
    nobody = Step(famo, np.zeros(4))
    assert float(nobody.total.detach()) == 0
    assert not nobody.factors.any()
    assert not nobody.slopes.any()


def test_units_of_losses_do_not_matter() -> None:
    """The gradient of log l is the same for any multiple of l."""
    losses = np.array([0.6, 0.2, 1.7, 4.0])
    units = np.array([1.0, 100.0, 0.01, 1.0])
    plain, scaled = Step(new_famo(), losses), Step(new_famo(), losses * units)
    directions = [step.factors[:3] * unit for step, unit in ((plain, np.ones(3)), (scaled, units[:3]))]
    np.testing.assert_allclose(directions[1] / directions[1].sum(), directions[0] / directions[0].sum(), rtol=1e-4)


def test_its_weights_are_in_the_log(tmp_path: Path) -> None:
    write_feed(tmp_path / "data", 600)
    path = training_file(tmp_path, balancing={"kind": "famo"})
    lines = read_log(train(TrainingConfig.load(path), show=False))
    factors = [value for name, value in lines[-1].items() if name.startswith("balancing_weight_")]
    assert sum(factors) == pytest.approx(len(factors), rel=CLOSE)
    assert len({round(value, 6) for value in factors}) > 1
