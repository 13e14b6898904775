"""Balancing against hand computations: formulas, one step by hand, fused tables, and exact resumption of every kind."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from pydantic import TypeAdapter

from model.embeddings.embeddings import Embeddings
from model.features.block import BlockTensors
from model.features.encoder import FeatureEncoder, FittedFeatures
from model.ranker import Network, NetworkConfig, Ranker
from model.schema import FeedSchema
from tests.training_data import (
    Stopped,
    assert_same_checkpoints,
    stop_at,
    training_file,
    write_feed,
)
from training.config import OptimizerConfig, TrainingConfig
from training.step.balancing import KINDS, Balancing, BalancingConfig, GradientBalancing, GradNorm, UncertaintyWeighting
from training.step.balancing.losses import TaskLosses
from training.step.optimizers import Optimizers
from training.train import train

Array = NDArray[np.float64]

SCHEMA = FeedSchema.from_mapping(
    yaml.safe_load("""
name: steps
features:
  - {name: user,  side: user,      kind: id, vocabulary: [0, 1, 2], dim: 4}
  - {name: video, side: candidate, kind: id, vocabulary: [0, 1, 2, 3], dim: 4}
  - {name: x,     side: candidate, kind: number}
tasks:
  - {name: click, kind: binary, label: a}
  - {name: like,  kind: binary, label: b, loss_weight: 2.0}
  - {name: watch, kind: regression, label: c, loss_weight: 0.5}
  - {name: idle,  kind: regression, label: d, loss_weight: 0.0}
"""),
    "test",
)
LOSS_WEIGHTS = [1.0, 2.0, 0.5, 0.0]
GRADIENT_KINDS = ["pcgrad", "cagrad", "mgda", "nash_mtl", "upgrad", "graddrop"]
NOTHING = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, dtype=torch.int64))
REQUEST = BlockTensors(torch.tensor([[1], [1]]), *NOTHING, torch.zeros(2, 0))
CANDIDATE = BlockTensors(torch.tensor([[2], [4]]), *NOTHING, torch.tensor([[0.5], [-1.0]]))
TARGETS_BT = torch.tensor([[1.0, 0.0, 2.0, 1.0], [0.0, 1.0, -1.0, 3.0]])


def built(kind: str, schema: FeedSchema = SCHEMA, seed: int = 0, **settings: Any) -> Balancing:
    config: Any = TypeAdapter(BalancingConfig).validate_python({"kind": kind, **settings})
    balancing: Balancing = config.build(TaskLosses(schema), seed)
    return balancing


def gradient_method(kind: str, seed: int = 0) -> GradientBalancing:
    balancing = built(kind, seed=seed)
    assert isinstance(balancing, GradientBalancing)
    return balancing


def new_ranker(rate: float = 0.5) -> Ranker:
    torch.manual_seed(0)
    encoder = FeatureEncoder(SCHEMA, FittedFeatures(numbers={"x": ()}))
    embeddings = Embeddings(SCHEMA, encoder, fused="sgd", learning_rate=rate)
    network = NetworkConfig.from_mapping(
        {"fusion": {"kind": "mmoe", "levels": [6], "num_experts": 3}, "tower": [3]}, "test"
    )
    return Ranker(embeddings, Network(network, embeddings.width, (1,) * 4))


def losses_of(ranker: Ranker, balancing: Balancing, observed_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """losses_T and the rows_BD that they come from."""
    rows_BD = ranker.embeddings(REQUEST, CANDIDATE)
    return balancing.losses(ranker.network(rows_BD), TARGETS_BT, observed_BT), rows_BD


def backward(ranker: Ranker, balancing: Balancing, observed_BT: torch.Tensor | None = None, step: int = 0) -> None:
    losses_T, rows_BD = losses_of(ranker, balancing, torch.ones(2, 4) if observed_BT is None else observed_BT)
    balancing.backward(losses_T, balancing.total(losses_T), rows_BD, ranker.network, step)


def by_task(observed_BT: torch.Tensor | None = None) -> tuple[Array, list[dict[str, torch.Tensor]]]:
    """J_TN at the row, and each task's gradients by parameter, from one plain backward pass a task."""
    jacobian, gradients = [], []
    for task, weight in enumerate(LOSS_WEIGHTS):
        ranker = new_ranker()
        losses_T, rows_BD = losses_of(ranker, built("none"), torch.ones(2, 4) if observed_BT is None else observed_BT)
        rows_BD.retain_grad()
        (weight * losses_T[task]).backward()  # type: ignore[no-untyped-call]
        assert rows_BD.grad is not None
        jacobian.append(rows_BD.grad.flatten().double().numpy())
        gradients.append({name: p.grad for name, p in ranker.network.named_parameters() if p.grad is not None})
    return np.array(jacobian), gradients


# The methods on gradients


def test_pcgrad_of_two_conflicting_gradients_by_hand() -> None:
    # g1.g2 = -1: g1 loses its part along g2, -1/2 (-1, 1), and g2 its part along g1, -1 (1, 0).
    combined, weights = gradient_method("pcgrad").combine(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]), 0)
    torch.testing.assert_close(combined, torch.tensor([0.5, 0.5]) + torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(weights, torch.tensor([2.0, 1.5]))


@pytest.mark.parametrize("kind", ["pcgrad", "upgrad"])
def test_without_conflict_the_sum_is_left_alone(kind: str) -> None:
    jacobian_TN = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 0.0], [0.0, 3.0, 1.0]])
    combined, weights = gradient_method(kind).combine(jacobian_TN, 0)
    torch.testing.assert_close(combined, jacobian_TN.sum(dim=0))
    torch.testing.assert_close(weights, torch.ones(3))


@pytest.mark.parametrize("kind", ["upgrad", "mgda", "nash_mtl"])
@pytest.mark.parametrize("seed", range(5))
def test_a_method_for_all_tasks_hurts_none(kind: str, seed: int) -> None:
    jacobian_TN = torch.randn(5, 40, generator=torch.Generator().manual_seed(seed))
    combined, _ = gradient_method(kind).combine(jacobian_TN, 0)
    # All are exact to float32. Nash-MTL's products are 1 / w, far from 0.
    assert float((jacobian_TN @ combined).min()) >= -1e-5 * float(combined.norm()) ** 2


@pytest.mark.parametrize("seed", range(5))
def test_mgda_is_the_shortest_combination(seed: int) -> None:
    jacobian_TN = torch.randn(4, 12, generator=torch.Generator().manual_seed(seed))
    combined, weights = gradient_method("mgda").combine(jacobian_TN, 0)
    assert float(weights.min()) >= 0
    assert float(weights.sum()) == pytest.approx(1, rel=1e-5)
    mixtures = np.random.default_rng(seed).dirichlet(np.full(4, 0.7), 5000) @ jacobian_TN.double().numpy()
    # Rounding of the float32 sum.
    assert float(combined.norm()) <= (1 + 1e-5) * np.linalg.norm(mixtures, axis=1).min()


def test_graddrop_keeps_one_sign_in_each_place_and_all_of_it() -> None:
    jacobian_TN = torch.randn(3, 500, generator=torch.Generator().manual_seed(1))
    combined, weights = gradient_method("graddrop").combine(jacobian_TN, 0)
    positive, negative = jacobian_TN.clamp(min=0).sum(dim=0), jacobian_TN.clamp(max=0).sum(dim=0)
    is_positive = torch.isclose(combined, positive, rtol=1e-5)
    assert bool((is_positive | torch.isclose(combined, negative, rtol=1e-5)).all())
    # A place with one sign is never dropped, and purity is the chance of the positive part elsewhere.
    purity = positive / (positive - negative)
    is_mixed = (purity > 0) & (purity < 1)
    drawn, expected = float(is_positive[is_mixed].sum()), float(purity[is_mixed].sum())
    deviation = math.sqrt(float((purity * (1 - purity))[is_mixed].sum()))
    assert abs(drawn - expected) < 4 * deviation
    assert torch.equal(weights, torch.ones(3))


@pytest.mark.parametrize("kind", GRADIENT_KINDS)
def test_a_task_without_a_gradient_is_left_out(kind: str) -> None:
    jacobian_TN = torch.randn(4, 30, generator=torch.Generator().manual_seed(2))
    jacobian_TN[1] = 0.0
    method = gradient_method(kind)
    combined, weights = method.combine(jacobian_TN, 0)
    without, others = method.combine(jacobian_TN[[0, 2, 3]], 0)
    assert torch.equal(combined, without)
    assert torch.equal(weights[[0, 2, 3]], others)
    assert float(combined.norm()) > 0
    nothing, _ = method.combine(torch.zeros(4, 30), 0)
    assert torch.equal(nothing, torch.zeros(30))


@pytest.mark.parametrize("kind", ["pcgrad", "graddrop"])
def test_chance_comes_from_seed_and_step_alone(kind: str) -> None:
    jacobian_TN = torch.randn(6, 50, generator=torch.Generator().manual_seed(3))
    state = torch.get_rng_state()
    one, _ = gradient_method(kind, seed=7).combine(jacobian_TN, 5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(one, gradient_method(kind, seed=7).combine(jacobian_TN, 5)[0])
    others = [gradient_method(kind, seed=seed).combine(jacobian_TN, step)[0] for seed, step in ((7, 6), (8, 5))]
    assert not any(torch.equal(one, other) for other in others)


# What each part of a ranker receives


@pytest.mark.parametrize("kind", GRADIENT_KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_tables_network_and_towers_receive_what_is_promised(kind: str, masked: bool) -> None:
    observed_BT = torch.tensor([[1.0, 0.0, 1.0, 1.0]] * 2) if masked else torch.ones(2, 4)
    jacobian, gradients = by_task(observed_BT)
    method = gradient_method(kind)
    combined, weights = method.combine(torch.from_numpy(jacobian).float(), 3)
    ranker = new_ranker()
    optimizers = Optimizers(
        ranker, OptimizerConfig.from_mapping({"tables": {"kind": "sgd", "learning_rate": 0.5}}, "t"), 9
    )
    before = {name: table.clone() for name, table in ranker.embeddings.table_weights().items()}
    optimizers.start_step(0)
    optimizers.zero_grad()
    backward(ranker, method, observed_BT, step=3)
    after = ranker.embeddings.table_weights()
    # rows_BD = [user | video | x]: both rows show user row 1. Videos 2 and 4.
    rows = combined.view(2, 9)
    expected = {"user": torch.zeros(4, 4), "video": torch.zeros(5, 4)}
    expected["user"][1] = rows[:, :4].sum(dim=0)
    expected["video"][2], expected["video"][4] = rows[0, 4:8], rows[1, 4:8]
    for name in before:
        # Two ways to one float32 Jacobian, amplified where a method divides by small angles.
        torch.testing.assert_close(before[name] - after[name], 0.5 * expected[name], rtol=2e-3, atol=2e-6)
    for name, parameter in ranker.network.named_parameters():
        assert parameter.grad is not None, name
        task = int(name.split(".")[1]) if name.startswith("towers") else None
        parts = [
            (float(weights[t]) if task is None else float(t == task)) * gradients[t].get(name, torch.zeros(()))
            for t in range(4)
        ]
        torch.testing.assert_close(parameter.grad, sum(parts, torch.zeros_like(parameter)), rtol=2e-3, atol=2e-6)


def test_gradients_that_are_not_finite_are_refused() -> None:
    method = gradient_method("nash_mtl")
    ranker = new_ranker()
    losses_T, rows_BD = losses_of(ranker, method, torch.ones(2, 4))
    broken_T = losses_T * torch.tensor([1.0, float("inf"), 1.0, 1.0])
    with pytest.raises(FloatingPointError, match="not finite"):
        method.backward(broken_T, broken_T.sum(), rows_BD, ranker.network, 0)


# Methods on losses


def test_uncertainty_weighting_equals_the_formula_and_its_derivatives() -> None:
    balancing = built("uncertainty")
    assert isinstance(balancing, UncertaintyWeighting)
    s = np.array([0.3, -0.7, 1.1, 0.2])
    with torch.no_grad():
        balancing.log_variances_T.copy_(torch.tensor(s))
    values = np.array([0.6, 0.2, 1.7, 4.0])
    losses_T = torch.tensor(values, dtype=torch.float32, requires_grad=True)
    total = balancing.total(losses_T)
    # Kendall et al.: cross entropy / sigma^2 + log sigma. Squared error / (2 sigma^2) + log sigma.
    sigma = np.exp(s / 2)
    scale = np.array([1.0, 1.0, 0.5, 0.5])
    weights = np.array(LOSS_WEIGHTS)
    assert float(total.detach()) == pytest.approx(
        float((weights * (scale * values / sigma**2 + np.log(sigma))).sum()), rel=1e-6
    )
    total.backward()  # type: ignore[no-untyped-call]
    assert losses_T.grad is not None
    assert balancing.log_variances_T.grad is not None
    np.testing.assert_allclose(losses_T.grad.numpy(), weights * scale / sigma**2, rtol=1e-5)
    np.testing.assert_allclose(
        balancing.log_variances_T.grad.numpy(), weights * (0.5 - scale * values / sigma**2), rtol=1e-5, atol=1e-7
    )


def test_a_task_without_labels_leaves_its_variance_alone() -> None:
    balancing = built("uncertainty")
    assert isinstance(balancing, UncertaintyWeighting)
    balancing.total(torch.tensor([0.7, 0.0, 0.7, 0.7])).backward()  # type: ignore[no-untyped-call]
    assert balancing.log_variances_T.grad is not None
    assert (balancing.log_variances_T.grad != 0).tolist() == [True, False, True, False]


def test_gradnorm_by_hand_over_two_steps() -> None:
    balancing = built("gradnorm", alpha=0.8, learning_rate=0.1)
    assert isinstance(balancing, GradNorm)
    ranker = new_ranker()
    config = OptimizerConfig.from_mapping({"tables": {"kind": "sgd", "learning_rate": 0.5}}, "test")
    optimizers = Optimizers(ranker, config, 9, balancing)
    weights, first = np.ones(4), None
    moments = np.zeros((2, 4))
    for step in range(2):
        optimizers.start_step(step)
        optimizers.zero_grad()
        losses_T, rows_BD = losses_of(ranker, balancing, torch.ones(2, 4))
        values = losses_T.detach().double().numpy() * LOSS_WEIGHTS
        norms = np.array(
            [
                weight * float(torch.autograd.grad(loss, rows_BD, retain_graph=True)[0].norm())
                for weight, loss in zip(LOSS_WEIGHTS, losses_T, strict=True)
            ]
        )
        total = balancing.total(losses_T)
        assert float(total.detach()) == pytest.approx(float((weights * values).sum()), rel=1e-5)
        balancing.backward(losses_T, total, rows_BD, ranker.network, step)
        first = values if first is None else first
        # The last task has loss weight 0 and is no part of it.
        rates = values[:3] / first[:3]
        targets = (weights * norms)[:3].mean() * (rates / rates.mean()) ** 0.8
        slopes = np.append(np.sign((weights * norms)[:3] - targets) * norms[:3], 0.0)
        assert balancing.task_weights_T.grad is not None
        np.testing.assert_allclose(balancing.task_weights_T.grad.numpy(), slopes, rtol=1e-4)
        optimizers.step()
        balancing.after_step()
        moments = np.array([0.9, 0.999])[:, None] * moments + np.array([0.1, 0.001])[:, None] * [slopes, slopes**2]
        corrected = moments / (1 - np.array([0.9, 0.999]) ** (step + 1))[:, None]
        weights = weights - 0.1 * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
        weights[:3] /= weights[:3].mean()
        np.testing.assert_allclose(balancing.task_weights_T.detach().numpy(), weights, rtol=1e-4)
    assert float(balancing.task_weights_T[:3].detach().std()) > 0.01


def test_gradnorm_helps_the_slow_task_more_the_larger_alpha_is() -> None:
    ranker, slopes = new_ranker(), []
    for alpha in (0.0, 1.0, 6.0):
        balancing = built("gradnorm", alpha=alpha)
        assert isinstance(balancing, GradNorm)
        losses_T, rows_BD = losses_of(ranker, balancing, torch.ones(2, 4))
        parts_T = losses_T * torch.tensor(LOSS_WEIGHTS)
        norms = np.array([float(torch.autograd.grad(part, rows_BD, retain_graph=True)[0].norm()) for part in parts_T])
        # The first two tasks stand at a tenth and at half of their first loss, the third at all of it.
        rates = np.array([0.1, 0.5, 1.0])
        balancing.first_losses_T[:3] = parts_T.detach()[:3] / torch.tensor(rates, dtype=torch.float32)
        balancing.backward(losses_T, balancing.total(losses_T), rows_BD, ranker.network, 0)
        targets = norms[:3].mean() * (rates / rates.mean()) ** alpha
        assert balancing.task_weights_T.grad is not None
        slopes.append(np.sign(balancing.task_weights_T.grad.numpy()).tolist())
        assert slopes[-1] == [*np.sign(norms[:3] - targets), 0.0]
    assert len({tuple(signs) for signs in slopes}) > 1


def test_gradnorm_keeps_weights_above_nothing() -> None:
    balancing = built("gradnorm")
    assert isinstance(balancing, GradNorm)
    with torch.no_grad():
        balancing.task_weights_T.copy_(torch.tensor([-3.0, 1.0, 2.0, 1.0]))
    balancing.after_step()
    weights = balancing.task_weights_T.detach()
    assert float(weights.min()) > 0
    assert float(weights[:3].mean()) == pytest.approx(1.0)


# Whole runs


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_ends_with_the_weights_of_one_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    write_feed(tmp_path / "data", 600)
    path = training_file(tmp_path, balancing={"kind": kind}, checkpoint_seconds=1e-9)
    whole = train(TrainingConfig.load(path, [f"output={tmp_path}/whole"]), show=False)
    with monkeypatch.context() as patched:
        stop_at(patched, 4)
        with pytest.raises(Stopped):
            train(TrainingConfig.load(path), show=False)
    resumed = train(TrainingConfig.load(path), show=False)
    assert_same_checkpoints(whole, resumed)
    # It trained: the objective of a constant prediction is 1, and a balancing that did nothing would leave it above.
    assert whole.summary()["best_objective"] < 1.05


def test_a_feed_of_numbers_alone_can_be_balanced(tmp_path: Path) -> None:
    schema = """
name: bare
features: [{name: duration, side: candidate, kind: number, transform: [log1p, standardise]}]
tasks:
  - {name: click, kind: binary,     label: is_click}
  - {name: watch, kind: regression, label: watch_ms, transform: log1p}
"""
    write_feed(tmp_path / "data", 600)
    for kind in ("gradnorm", "upgrad"):
        path = training_file(tmp_path, schema=schema, balancing={"kind": kind}, output=str(tmp_path / kind))
        assert train(TrainingConfig.load(path), show=False).summary()["epochs"] == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("balancing.kind=pcgrab", "did you mean 'pcgrad'"),
        ("balancing={alpha: 1}", "key 'kind' is missing"),
        ("balancing={kind: mgda, c: 0.4}", "unknown key 'c'"),
        ("balancing={kind: cagrad, c: 1.0}", "less than 1"),
        ("balancing={kind: gradnorm, alpha: -1}", "alpha"),
        ("balancing={kind: uncertainty, learning_rate: .nan}", "learning_rate"),
    ],
)
def test_a_balancing_that_cannot_be_is_refused(tmp_path: Path, change: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TrainingConfig.load(training_file(tmp_path), [change])
