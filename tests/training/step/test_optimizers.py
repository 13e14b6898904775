"""Optimizers against numpy by hand: Adam, fused tables, and a schedule that takes effect at the very step."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from model.embeddings.embeddings import Embeddings
from model.features.block import BlockTensors
from model.features.encoder import FeatureEncoder, FittedFeatures
from model.ranker import Network, NetworkConfig, Ranker
from model.schema import FeedSchema
from training.config import OptimizerConfig
from training.step.optimizers import Optimizers

Array = NDArray[np.float64]

SCHEMA = FeedSchema.from_mapping(
    yaml.safe_load("""
name: steps
features:
  - {name: user,  side: user,      kind: id, vocabulary: [0, 1, 2], dim: 4}
  - {name: video, side: candidate, kind: id, vocabulary: [0, 1, 2, 3], dim: 4}
  - {name: x,     side: candidate, kind: number}
tasks: [{name: click, kind: binary, label: y}]
"""),
    "test",
)
STEPS = 5


def new_ranker(fused: str | None, rate: float) -> Ranker:
    torch.manual_seed(0)
    encoder = FeatureEncoder(SCHEMA, FittedFeatures(numbers={"x": ()}))
    embeddings = Embeddings(SCHEMA, encoder, fused=fused, learning_rate=rate)  # type: ignore[arg-type]
    network = NetworkConfig.from_mapping({"fusion": {"kind": "adatt_sp", "levels": [4], "experts_per_task": 1}}, "test")
    return Ranker(embeddings, Network(network, embeddings.width, (1,)))


def gradient_of(step: int, shape: tuple[int, ...]) -> Array:
    """A made-up gradient, another one for each step."""
    return np.random.default_rng(step).normal(size=shape)


def run_dense(config: OptimizerConfig, steps: int = STEPS) -> tuple[list[Array], list[Array]]:
    """All dense parameters before and after `steps` steps with `gradient_of` as their gradients (tables unfused)."""
    ranker = new_ranker(None, config.tables.learning_rate)
    parameters = [*ranker.network.parameters(), *ranker.embeddings.parameters()]
    before = [parameter.detach().double().numpy().copy() for parameter in parameters]
    optimizers = Optimizers(ranker, config, steps)
    for step in range(steps):
        optimizers.start_step(step)
        optimizers.zero_grad()
        assert all(parameter.grad is None for parameter in parameters)
        for parameter in parameters:
            parameter.grad = torch.tensor(gradient_of(step, tuple(parameter.shape)), dtype=torch.float32)
        optimizers.step()
    return before, [parameter.detach().double().numpy() for parameter in parameters]


def adam(weight: Array, rate_of: Callable[[int], float], decay: float) -> Array:
    """Kingma and Ba's Adam by hand, with L2 `decay` in the gradient."""
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    for step in range(STEPS):
        gradient = gradient_of(step, weight.shape) + decay * weight
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = (first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1)))
        weight = weight - rate_of(step) * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    return weight


def cosine(step: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / STEPS))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_equals_the_hand_computation_in_both_groups(schedule: str, decay: float) -> None:
    tree = {
        "tables": {"kind": "adam", "learning_rate": 0.03},
        "dense": {"learning_rate": 0.01, "weight_decay": decay},
        "schedule": schedule,
    }
    before, after = run_dense(OptimizerConfig.from_mapping(tree, "test"))
    tables = 2
    for position, (start, end) in enumerate(zip(before, after, strict=True)):
        is_table = position >= len(before) - tables
        rate = 0.03 if is_table else 0.01

        def rate_of(step: int, rate: float = rate) -> float:
            return rate * (cosine(step) if schedule == "cosine" else 1.0)

        expected = adam(start, rate_of, 0.0 if is_table else decay)
        # Five float32 steps on weights around 1.
        np.testing.assert_allclose(end, expected, rtol=0, atol=2e-6, err_msg=f"parameter {position}")


class _Probe(torch.nn.Module):
    """In place of a network: its output is the sum of the row times fixed factors, so table gradients are known."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factors = torch.arange(1.0, width + 1) / 10
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, rows_BD: torch.Tensor) -> torch.Tensor:
        return (rows_BD * self.factors).sum(dim=1, keepdim=True)


def run_fused(kind: str, rate: float, schedule: str) -> tuple[dict[str, Array], list[dict[str, Array]]]:
    """Tables before, and after each step of a batch of two impressions: user 0 twice, videos 1 and 3."""
    ranker = new_ranker(kind, rate)
    probe: Any = _Probe(ranker.embeddings.width)
    ranker.network = probe
    tree = {"tables": {"kind": kind, "learning_rate": rate}, "schedule": schedule}
    optimizers = Optimizers(ranker, OptimizerConfig.from_mapping(tree, "test"), STEPS)

    def tables() -> dict[str, Array]:
        weights = ranker.embeddings.table_weights()
        return {name: weight.double().numpy().copy() for name, weight in weights.items()}

    nothing = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, dtype=torch.int64))
    request = BlockTensors(torch.tensor([[1], [1]]), *nothing, torch.zeros(2, 0))
    candidate = BlockTensors(torch.tensor([[2], [4]]), *nothing, torch.zeros(2, 1))
    before, after = tables(), []
    for step in range(STEPS):
        optimizers.start_step(step)
        optimizers.zero_grad()
        ranker(request, candidate).sum().backward()
        optimizers.step()
        after.append(tables())
    return before, after


FACTORS = np.arange(1.0, 5.0) / 10
GRADIENTS = {  # by table: rows -> gradient of the loss. User 0 stands in both impressions
    "user": {1: 2 * FACTORS},
    "video": {2: np.arange(5.0, 9.0) / 10, 4: np.arange(5.0, 9.0) / 10},
}


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise_adagrad"])
def test_fused_tables_step_by_hand_with_the_rate_of_the_very_step(kind: str, schedule: str) -> None:
    rate = 0.5
    before, after = run_fused(kind, rate, schedule)
    expected = {name: weights.copy() for name, weights in before.items()}
    squares = {name: np.zeros_like(weights) for name, weights in before.items()}
    for step in range(STEPS):
        step_rate = rate * (cosine(step) if schedule == "cosine" else 1.0)
        for name, rows in GRADIENTS.items():
            for row, gradient in rows.items():
                if kind == "sgd":
                    expected[name][row] -= step_rate * gradient
                    continue
                # Adagrad sums squares per weight. Row-wise Adagrad keeps one sum per row, of the mean square.
                squares[name][row] += gradient**2 if kind == "adagrad" else np.mean(gradient**2)
                expected[name][row] -= step_rate * gradient / (np.sqrt(squares[name][row]) + 1e-8)
        for name in expected:
            np.testing.assert_allclose(after[step][name], expected[name], rtol=0, atol=2e-6, err_msg=f"{name}, {step}")


def test_a_cosine_starts_at_the_full_rate_and_falls_to_nothing() -> None:
    before, after = run_fused("sgd", 0.5, "cosine")
    moves = [np.abs(one["user"] - other["user"]).max() for one, other in zip([before, *after], after, strict=False)]
    assert moves == sorted(moves, reverse=True)
    assert moves[0] == pytest.approx(0.5 * 0.8, rel=1e-5)  # the largest gradient of the user's row is 0.8
    assert moves[-1] < 0.1 * moves[0]


@pytest.mark.parametrize("kind", ["rowwise_adagrad", "adam"])
def test_state_put_back_steps_on_as_if_never_interrupted(kind: str) -> None:
    config = OptimizerConfig.from_mapping({"tables": {"kind": kind}, "schedule": "cosine"}, "test")

    def steps(ranker: Ranker, optimizers: Optimizers, numbers: range) -> None:
        nothing = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, dtype=torch.int64))
        for step in numbers:
            optimizers.start_step(step)
            optimizers.zero_grad()
            request = BlockTensors(torch.tensor([[step % 4], [1]]), *nothing, torch.zeros(2, 0))
            candidate = BlockTensors(torch.tensor([[2], [step % 5]]), *nothing, torch.ones(2, 1))
            ranker(request, candidate).sum().backward()
            optimizers.step()

    def fresh() -> tuple[Ranker, Optimizers]:
        ranker = new_ranker(None if kind == "adam" else kind, 0.02)
        return ranker, Optimizers(ranker, config, 8)

    whole, whole_optimizers = fresh()
    steps(whole, whole_optimizers, range(8))
    first, first_optimizers = fresh()
    steps(first, first_optimizers, range(3))
    second, second_optimizers = fresh()
    second.load_state_dict(first.state_dict())
    second_optimizers.load_state_dict(first_optimizers.state_dict())
    for name, momentum in first_optimizers.momenta().items():
        second_optimizers.momenta()[name].copy_(momentum)
    steps(second, second_optimizers, range(3, 8))
    for (name, one), other in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_a_feed_without_tables_has_a_dense_optimizer_alone() -> None:
    schema = FeedSchema.from_mapping(
        {
            "name": "bare",
            "features": [{"name": "x", "side": "candidate", "kind": "number"}],
            "tasks": [{"name": "click", "kind": "binary", "label": "y"}],
        },
        "test",
    )
    encoder = FeatureEncoder(schema, FittedFeatures(numbers={"x": ()}))
    embeddings = Embeddings(schema, encoder, fused="rowwise_adagrad", learning_rate=0.1)
    config = NetworkConfig.from_mapping({"fusion": {"kind": "adatt_sp", "levels": [4], "experts_per_task": 1}}, "test")
    optimizers = Optimizers(Ranker(embeddings, Network(config, 1, (1,))), OptimizerConfig(), 1)
    optimizers.start_step(0)
    assert optimizers.momenta() == {}
    optimizers.load_state_dict(optimizers.state_dict())
