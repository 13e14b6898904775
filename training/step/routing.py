"""Routing policies of a learned routing network, moved by the rewards of the training steps that drew from them.

In: the routes that a step drew, its logits and labels. Out: changed policies. The reward of a row and task is the same
for every layer on its route. WPL (Abdallah and Lesser, 2006) moves a policy: with R the mean reward of the rows that
drew an action, and V the task's running mean, the action's advantage is R - V. WPL weighs it by pi(a) where it is
negative and by 1 - pi(a) where it is not, so that a policy slows down as it nears the simplex's edge. An optimizer of
its own climbs the weighted advantages.

Shapes: B rows, T tasks, O outputs, M modules.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.fusion.learned_routing import LearnedRouting
from model.fusion.policy import Policy, PolicyConfig, probabilities, simplex_projection
from model.schema import FeedSchema
from training.files import derived_seed
from training.tasks import KINDS, learned


class PolicyOptimizer:
    """Steps `policies` (at least one), which share the route and so the reward of each row and task."""

    def __init__(self, policies: Sequence[Policy], config: PolicyConfig) -> None:
        self._policies = list(policies)
        self._history = config.reward_history
        kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[config.policy_optimizer]
        tables = [policy.policy_TM for policy in self._policies]
        self._optimizer = kind(tables, lr=config.policy_learning_rate)
        # The running mean reward of each task. NaN until its first labels are seen.
        self._mean_T = torch.full((len(tables[0]),), torch.nan, dtype=torch.float64, device=tables[0].device)

    @torch.no_grad()
    def step(self, rewards_BT: Tensor, counts_BT: Tensor) -> None:
        """Learns from the rewards of the last draws. counts_BT says how much each entry counts (0: not at all)."""
        counts_T = counts_BT.sum(dim=0)
        batch_mean_T = (rewards_BT * counts_BT).sum(dim=0) / counts_T
        moved_T = self._mean_T + self._history * (batch_mean_T - self._mean_T)
        running_T = torch.where(self._mean_T.isnan(), batch_mean_T, moved_T)
        self._mean_T = torch.where(counts_T > 0, running_T, self._mean_T)
        for policy in self._policies:
            policy.policy_TM.grad = policy_gradient(policy, rewards_BT, counts_BT, self._mean_T)
        self._optimizer.step()
        # The modules' optimizer may have these tables too: without a gradient it leaves them alone.
        self._optimizer.zero_grad(set_to_none=True)
        for policy in self._policies:
            if policy.kind == "clip":
                policy.policy_TM.copy_(simplex_projection(policy.policy_TM))

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint beside the policies themselves."""
        return {"optimizer": self._optimizer.state_dict(), "mean_T": self._mean_T}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state()`."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._mean_T = state["mean_T"].to(self._mean_T.device)


def policy_gradient(policy: Policy, rewards_BT: Tensor, counts_BT: Tensor, mean_T: Tensor) -> Tensor:
    """The descent gradient of a layer's `policy_TM` [T, M]: WPL's, through the way its kind makes probabilities."""
    taken_BTM = functional.one_hot(policy.drawn_BT, policy.policy_TM.shape[1]) * counts_BT.unsqueeze(2).double()
    counts_TM = taken_BTM.sum(dim=0)
    sums_TM = (taken_BTM * rewards_BT.unsqueeze(2)).sum(dim=0)
    # An action that no row drew has shown nothing.
    advantages_TM = torch.where(counts_TM > 0, sums_TM / counts_TM - mean_T.unsqueeze(1), 0.0)
    with torch.enable_grad():
        policy_TM = policy.policy_TM.detach().double().requires_grad_()
        chances_TM = probabilities(policy_TM, policy.kind)
        (gradient_TM,) = torch.autograd.grad((chances_TM * wpl(advantages_TM, chances_TM.detach())).sum(), policy_TM)
    return -gradient_TM.to(policy.policy_TM.dtype)


def wpl(advantages_TM: Tensor, chances_TM: Tensor) -> Tensor:
    """WPL's weighted advantages: times pi(a) below 0, times 1 - pi(a) from 0 on."""
    return advantages_TM * torch.where(advantages_TM < 0, chances_TM, 1 - chances_TM)


class PolicyLearner:
    """Moves the policies of a network. For a network without policies it does nothing at all."""

    def __init__(self, fusion: nn.Module, schema: FeedSchema, seed: int) -> None:
        """Raise ValueError where the reward needs right answers and a task has none."""
        self._fusion = fusion if isinstance(fusion, LearnedRouting) else None
        self._seed = seed
        self._optimizer: PolicyOptimizer | None = None
        self._tasks = [(learned(task), schema.output_slices[task.name]) for task in schema.tasks]
        if self._fusion is None:
            return
        config = self._fusion.config
        for task in schema.tasks:
            if config.reward == "correct" and not KINDS[task.kind].has_right_answers:
                raise ValueError(
                    f"network.fusion.reward: correct: task '{task.name}' is a {task.kind} and has no right answer; "
                    "use reward: log_likelihood"
                )
        policies = list(self._fusion.routed_layers().values())
        if policies:
            self._optimizer = PolicyOptimizer(policies, config)

    def start_step(self, epoch: int, step: int) -> None:
        """Before the forward pass: seeds the step's draws. `epoch` (from 0) ends the warm-up."""
        if self._fusion is not None:
            # The 1 keeps these numbers apart from those that order the rows of an epoch.
            self._fusion.next_seed = derived_seed(self._seed, step, 1)
            self._fusion.is_warm_up = epoch < self._fusion.config.warm_up_epochs

    @torch.no_grad()
    def learn(
        self, logits_BO: Tensor, targets_BT: Tensor, observed_BT: Tensor, row_weights_B: Tensor | None = None
    ) -> None:
        """After the modules' step: rewards the routes that this step drew. Means are weighted where rows are."""
        if self._fusion is None or self._optimizer is None or self._fusion.is_warm_up:
            return
        counts_BT = observed_BT if row_weights_B is None else observed_BT * row_weights_B.unsqueeze(1)
        self._optimizer.step(self._rewards(logits_BO.detach(), targets_BT), counts_BT)

    def _rewards(self, logits_BO: Tensor, targets_BT: Tensor) -> Tensor:
        assert self._fusion is not None
        is_correct = self._fusion.config.reward == "correct"
        rewards: list[Tensor] = []
        for (task, columns), targets_B in zip(self._tasks, targets_BT.unbind(1), strict=True):
            reward = task.is_right if is_correct else task.log_likelihood
            rewards.append(reward(logits_BO[:, columns], targets_B))
        rewards_BT = torch.stack(rewards, dim=1)
        return torch.where(rewards_BT, 1.0, -1.0).double() if is_correct else rewards_BT.double()

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint beside the policies themselves. Empty for other networks."""
        return {} if self._optimizer is None else self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state()`."""
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state)
