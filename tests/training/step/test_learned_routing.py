"""WPL on routing policies: one step by hand, made tasks with a known best route, warm-up, masks, seeds and resuming."""

import copy
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import entropy
from torch import Tensor

from model.fusion import LearnedRouting, build_network
from model.fusion.learned_routing import RoutedLayer
from model.fusion.policy import probabilities
from model.ranker import NetworkConfig
from model.schema import FeedSchema
from tests.training_data import assert_same_checkpoints, saved_state, training_file, write_feed
from training.__main__ import main
from training.config import TrainingConfig
from training.run.run import BEST, LAST, LOG, Run
from training.step.policy_updates import wpl
from training.step.routing import PolicyLearner
from training.train import train

SCHEMA = FeedSchema.from_mapping(
    {
        "name": "two",
        "features": [{"name": "x", "side": "candidate", "kind": "number"}],
        "tasks": [{"name": name, "kind": "binary", "label": name} for name in ("first", "second")],
    },
    "schema.yaml",
)


def network(**changes: Any) -> LearnedRouting:
    """Two tasks, one layer of width 1, two modules: module m passes column m of a row of two."""
    fusion = {"kind": "learned_routing", "levels": [1], "num_modules": 2, **changes}
    module = build_network(NetworkConfig.from_mapping({"fusion": fusion}, "network.yaml").fusion, 2, 2)
    assert isinstance(module, LearnedRouting)
    with torch.no_grad():
        choices = layer_of(module).choices
        choices.weight_EDH.copy_(torch.eye(2).unsqueeze(2))
        choices.bias_E1H.zero_()
    return module.train()


def layer_of(module: LearnedRouting) -> RoutedLayer:
    return module.routed_layers()[0]


def rows_and_labels(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Task t's label is whether column t is above a half, so module t answers it and the other one guesses."""
    rows_BD = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed))
    return rows_BD, (rows_BD > 0.5).float()


def learn(module: LearnedRouting, steps: int, rows: int = 64, epoch: int = 0, first_step: int = 0) -> PolicyLearner:
    learner = PolicyLearner(module, SCHEMA, seed=0)
    for step in range(first_step, first_step + steps):
        rows_BD, targets_BT = rows_and_labels(rows, step)
        learner.start_step(epoch, step)
        # Steep, so that right answers are also likely ones.
        logits_BO = 8 * (module(rows_BD)[:, :, 0] - 0.5)
        learner.learn(logits_BO, targets_BT, torch.ones_like(targets_BT))
    return learner


def by_hand(
    policy: NDArray[np.float64], drawn: NDArray[np.int64], rewards: NDArray[np.float64], mean: float, kind: str
) -> NDArray[np.float64]:
    """A task's policy after one plain gradient step of rate 0.1 on WPL's objective."""
    chances = np.exp(policy) / np.exp(policy).sum() if kind == "softmax" else policy
    weighted = np.zeros(len(policy))
    for action in set(drawn.tolist()):
        advantage = rewards[drawn == action].mean() - mean
        weighted[action] = advantage * (chances[action] if advantage < 0 else 1 - chances[action])
    if kind == "softmax":
        jacobian = np.diag(chances) - np.outer(chances, chances)
        return np.asarray(policy + 0.1 * jacobian @ weighted)
    clipped = np.clip(policy + 0.1 * weighted, 0, 1)
    return np.asarray(clipped / clipped.sum())


@pytest.mark.parametrize("kind", ["softmax", "clip"])
@pytest.mark.parametrize("reward", ["correct", "log_likelihood"])
def test_two_steps_are_those_of_the_hand(kind: str, reward: str) -> None:
    changes = {"policy_optimizer": "sgd", "policy_learning_rate": 0.1, "reward_history": 0.25}
    module = network(learner="batch_means", policy=kind, reward=reward, **changes)
    learner = PolicyLearner(module, SCHEMA, seed=3)
    layer = layer_of(module)
    expected = layer.policy_TM.double().numpy().copy()
    means: list[float | None] = [None, None]
    for step in range(2):
        rows_BD, targets_BT = rows_and_labels(9, step)
        learner.start_step(0, step)
        logits_BO = module(rows_BD)[:, :, 0] - 0.5
        # The second task's label is masked in some rows.
        observed_BT = torch.ones(9, 2)
        observed_BT[:4, 1] = 0
        learner.learn(logits_BO, targets_BT, observed_BT)
        for task in range(2):
            seen = observed_BT[:, task].numpy() > 0
            logits = logits_BO.detach().double().numpy()[seen, task]
            labels = targets_BT.double().numpy()[seen, task]
            if reward == "correct":
                rewards = np.where((logits > 0) == (labels == 1), 1.0, -1.0)
            else:
                rewards = np.log(1 / (1 + np.exp(np.where(labels == 1, -logits, logits))))
            before = means[task]
            mean = rewards.mean() if before is None else 0.75 * before + 0.25 * rewards.mean()
            means[task] = float(mean)
            drawn = layer.drawn_BT[:, task].numpy()[seen]
            expected[task] = by_hand(expected[task], drawn, rewards, float(mean), kind)
        # Policies are float32.
        np.testing.assert_allclose(layer.policy_TM.numpy(), expected, atol=1e-6)


def test_a_row_that_weighs_two_rewards_like_two_rows() -> None:
    rows_BD, targets_BT = rows_and_labels(8, 0)
    weights_B = torch.tensor([0, 1, 2, 3, 0, 1, 2, 1])
    policies_of = []
    for is_weighted in (True, False):
        module = network(policy="softmax", reward="log_likelihood", policy_optimizer="sgd", policy_learning_rate=0.1)
        learner = PolicyLearner(module, SCHEMA, seed=3)
        learner.start_step(0, 0)
        logits_BO = module(rows_BD)[:, :, 0] - 0.5
        targets, weights = targets_BT, weights_B.float() if is_weighted else None
        if not is_weighted:
            layer = layer_of(module)
            layer.drawn_BT = layer.drawn_BT.repeat_interleave(weights_B, dim=0)
            logits_BO, targets = (part.repeat_interleave(weights_B, dim=0) for part in (logits_BO, targets_BT))
        learner.learn(logits_BO, targets, torch.ones_like(targets), weights)
        policies_of.append(layer_of(module).policy_TM.clone())
    torch.testing.assert_close(policies_of[0], policies_of[1])
    assert not torch.equal(policies_of[0][0], policies_of[0][0].flip(0)), "the policy has moved"


def test_wpl_slows_down_towards_the_edges() -> None:
    advantages = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    chances = torch.tensor([[0.1, 0.1, 0.4, 0.4]])
    torch.testing.assert_close(wpl(advantages, chances), torch.tensor([[1.8, -0.2, 1.2, -0.8]]))


@pytest.mark.parametrize("reward", ["correct", "log_likelihood"])
@pytest.mark.parametrize(("kind", "optimizer", "rate"), [
    ("softmax", "adam", 0.02), ("softmax", "sgd", 0.5), ("clip", "adam", 0.02), ("clip", "sgd", 0.05),
])  # fmt: skip
def test_policies_find_each_tasks_better_module(kind: str, optimizer: str, rate: float, reward: str) -> None:
    module = network(policy=kind, reward=reward, policy_optimizer=optimizer, policy_learning_rate=rate)
    learn(module, 400)
    chances = probabilities(layer_of(module).policy_TM, kind)
    assert chances[0, 0] > 0.9
    assert chances[1, 1] > 0.9
    rows_BD, targets_BT = rows_and_labels(500, 999)
    assert ((module.eval()(rows_BD)[:, :, 0] > 0.5) == (targets_BT > 0.5)).all()


def test_the_published_projection_is_decided_after_one_step() -> None:
    """A.1: the first step throws the policy to an extreme whatever little the rows have shown, and it stays there."""
    # Eight rows: next to nothing is known of either module.
    published = network(learner="public_code", policy="as_published", policy_optimizer="sgd")
    learn(published, 1, rows=8)
    chances = probabilities(layer_of(published).policy_TM, "as_published")
    assert chances.min() < 1e-5
    assert layer_of(published).policy_TM.abs().max() > 100
    # The same rewards leave the others near where they were.
    for kind in ("softmax", "clip"):
        module = network(policy=kind, policy_optimizer="sgd")
        learn(module, 1, rows=8)
        assert probabilities(layer_of(module).policy_TM, kind).min() > 0.45
    # And once decided nothing moves it, not even four hundred steps of evidence for the other module.
    wrong = network(learner="public_code", policy="as_published", policy_optimizer="sgd")
    layer_of(wrong).policy_TM.copy_(torch.tensor([[-1e3, 1e3], [1e3, -1e3]]))
    learn(wrong, 400)
    assert layer_of(wrong).policy_TM.argmax(dim=1).tolist() == [1, 0]


def test_warm_up_leaves_policies_alone_and_then_they_start() -> None:
    module = network(warm_up_epochs=2)
    even = layer_of(module).policy_TM.clone()
    for epoch in (0, 1):
        learn(module, 5, epoch=epoch)
        assert module.is_warm_up
        assert torch.equal(layer_of(module).policy_TM, even)
    learn(module, 5, epoch=2)
    assert not module.is_warm_up
    assert not torch.equal(layer_of(module).policy_TM, even)


def task_mean(learner: PolicyLearner, task: int) -> float:
    """The running mean of a task's rewards."""
    state = learner.state_dict()["update"]["tasks"]
    return float(state["sums"][task] / state["weights"][task])


def test_a_task_without_labels_in_a_batch_keeps_its_policy() -> None:
    module = network(policy_optimizer="sgd")
    learner = learn(module, 3)
    before, mean = layer_of(module).policy_TM.clone(), task_mean(learner, 1)
    rows_BD, targets_BT = rows_and_labels(16, 77)
    learner.start_step(0, 3)
    observed_BT = torch.ones_like(targets_BT)
    observed_BT[:, 1] = 0
    learner.learn(module(rows_BD)[:, :, 0] - 0.5, targets_BT, observed_BT)
    assert torch.equal(layer_of(module).policy_TM[1], before[1])
    assert task_mean(learner, 1) == mean
    assert not torch.equal(layer_of(module).policy_TM[0], before[0])


def test_a_state_that_is_restored_goes_on_alike() -> None:
    module = network()
    state = copy.deepcopy(learn(module, 6).state_dict())
    other = network()
    other.load_state_dict(module.state_dict())
    resumed = PolicyLearner(other, SCHEMA, seed=0)
    resumed.load_state_dict(state)
    rows_BD, targets_BT = rows_and_labels(32, 6)
    straight = PolicyLearner(module, SCHEMA, seed=0)
    straight.load_state_dict(copy.deepcopy(state))
    for learner, one in ((straight, module), (resumed, other)):
        learner.start_step(0, 6)
        learner.learn(one(rows_BD)[:, :, 0] - 0.5, targets_BT, torch.ones_like(targets_BT))
    assert torch.equal(layer_of(module).policy_TM, layer_of(other).policy_TM)
    assert PolicyLearner(torch.nn.Linear(2, 2), SCHEMA, 0).state_dict() == {}


# In training


def config_of(folder: Path, output: str = "run", **fusion: Any) -> TrainingConfig:
    """Training of the small feed, which has a regression task."""
    if not (folder / "data").exists():
        write_feed(folder / "data", 600)
    network: dict[str, Any] = {
        "fusion": {"kind": "learned_routing", "levels": [8, 4], "num_modules": 2, "reward": "log_likelihood", **fusion},
        "tower": [4],
    }
    return TrainingConfig.load(training_file(folder, network=network, output=str(folder / output), epochs=3))


def policies(run: Run, name: str = LAST) -> list[Tensor]:
    state = saved_state(run.path / name)["ranker"]
    return [value for key, value in state.items() if key.endswith("policy_TM")]


def test_a_run_learns_its_policies_and_logs_their_perplexity(tmp_path: Path) -> None:
    run = train(config_of(tmp_path), show=False)
    assert all(not torch.equal(policy, torch.full((3, 2), 0.5)) for policy in policies(run))
    with (run.path / LOG).open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    last = [float(lines[-1][f"policy_perplexity_layer_{layer}"]) for layer in (0, 1)]
    assert all(1 <= value < 2 for value in last)
    assert not run.best_ranker().training


def test_inspect_shows_the_policies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(config_of(tmp_path, policy="clip"), show=False)
    assert main(["inspect", str(run.path)]) == 0
    assert "layer 1: routing policy" in capsys.readouterr().out
    written = json.loads((run.path / "inside/inside.json").read_text(encoding="utf-8"))
    assert written["expert_weights"] is None
    with (run.path / LOG).open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    for layer, policy_TM in zip(written["policies"]["layers"], policies(run, BEST), strict=True):
        chances_TM = policy_TM.double().numpy()
        np.testing.assert_allclose(layer["probabilities"], chances_TM)
        np.testing.assert_allclose(layer["perplexity"], np.exp(entropy(chances_TM, axis=1)))
        lengths_T = np.linalg.norm(chances_TM, axis=1)
        np.testing.assert_allclose(layer["cosines"], chances_TM @ chances_TM.T / np.outer(lengths_T, lengths_T))
        by_point = written["policies"]["perplexity_over_training"][str(layer["layer"])]
        assert by_point == [float(line[f"policy_perplexity_layer_{layer['layer']}"]) for line in lines]
        by_chance = written["policies"]["placebo_perplexity_over_training"][str(layer["layer"])]
        assert by_chance == [float(line[f"placebo_perplexity_layer_{layer['layer']}"]) for line in lines]
        # Some steps of rewards have moved it, and otherwise than the policy.
        assert 1 <= by_chance[-1] < 2
        assert by_chance != by_point
    for name in ("policies", "policy_perplexity", "gradient_conflicts"):
        assert matplotlib.image.imread(run.path / f"inside/{name}.png").std() > 0.05, "blank"


def test_a_warm_up_as_long_as_the_run_learns_no_policy(tmp_path: Path) -> None:
    run = train(config_of(tmp_path, warm_up_epochs=3), show=False)
    assert all(torch.equal(policy, torch.full((3, 2), 0.5)) for policy in policies(run))


def test_weight_decay_of_the_modules_leaves_policies_alone(tmp_path: Path) -> None:
    config = config_of(tmp_path, warm_up_epochs=3)
    dense = config.optimizer.dense.model_copy(update={"weight_decay": 0.5})
    optimizer = config.optimizer.model_copy(update={"dense": dense})
    run = train(config.model_copy(update={"optimizer": optimizer}), show=False)
    assert all(torch.equal(policy, torch.full((3, 2), 0.5)) for policy in policies(run))


def test_the_same_seed_learns_the_same_and_a_killed_run_ends_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train(config_of(tmp_path, warm_up_epochs=1), show=False)
    config = config_of(tmp_path, output="killed", warm_up_epochs=1).model_copy(update={"checkpoint_seconds": 1e-9})
    learned: Callable[..., None] = PolicyLearner.learn
    steps = 0

    def dies_in_the_second_epoch(self: PolicyLearner, *arguments: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 10:
            raise KeyboardInterrupt
        learned(self, *arguments)

    monkeypatch.setattr(PolicyLearner, "learn", dies_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(config, show=False)
    monkeypatch.undo()
    resumed = train(config, show=False)
    assert_same_checkpoints(straight, resumed)


def test_a_right_answer_needs_a_binary_task(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task 'watch' is a regression and has no right answer; .*log_likelihood"):
        train(config_of(tmp_path, reward="correct"), show=False)
