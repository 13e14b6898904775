"""Routing policies of a learned routing network, moved by the rewards of the training steps that drew from them.

In: the routes that a step drew, its logits and labels. Out: changed policies. The reward of a row and task is the same
for every layer on its route. policy_updates.py says how rewards move a policy, policy_optimizer.py has their state.

Shapes: B rows, T tasks, O outputs.
"""

from typing import Any

import torch
from torch import Tensor, nn

from model.fusion.learned_routing import LearnedRouting
from model.schema import FeedSchema
from training.files import derived_seed
from training.step.policy_optimizer import PolicyOptimizer
from training.tasks import KINDS, learned

# What a step's seed is for. They keep it apart from the numbers that order the rows of an epoch.
DRAWS, PLACEBO = 1, 2


class PolicyLearner:
    """Moves the policies of a network. For a network without policies it does nothing at all."""

    def __init__(self, fusion: nn.Module, schema: FeedSchema, seed: int) -> None:
        """Raise ValueError where the reward needs right answers and a task has none."""
        self._fusion = fusion if isinstance(fusion, LearnedRouting) else None
        self._seed = self._placebo_seed = seed
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
            self._fusion.next_seed = derived_seed(self._seed, step, DRAWS)
            self._placebo_seed = derived_seed(self._seed, step, PLACEBO)
            self._fusion.is_warm_up = epoch < self._fusion.config.warm_up_epochs

    @torch.no_grad()
    def learn(
        self, logits_BO: Tensor, targets_BT: Tensor, observed_BT: Tensor, row_weights_B: Tensor | None = None
    ) -> None:
        """After the modules' step: rewards the routes that this step drew. Means are weighted where rows are."""
        if self._fusion is None or self._optimizer is None or self._fusion.is_warm_up:
            return
        counts_BT = observed_BT if row_weights_B is None else observed_BT * row_weights_B.unsqueeze(1)
        self._optimizer.step(self._rewards(logits_BO.detach(), targets_BT), counts_BT, self._placebo_seed)

    def _rewards(self, logits_BO: Tensor, targets_BT: Tensor) -> Tensor:
        assert self._fusion is not None
        is_correct = self._fusion.config.reward == "correct"
        rewards: list[Tensor] = []
        for (task, columns), targets_B in zip(self._tasks, targets_BT.unbind(1), strict=True):
            reward = task.is_right if is_correct else task.log_likelihood
            rewards.append(reward(logits_BO[:, columns], targets_B))
        rewards_BT = torch.stack(rewards, dim=1)
        return torch.where(rewards_BT, 1.0, -1.0).double() if is_correct else rewards_BT.double()

    def placebo_perplexities(self) -> dict[int, float]:
        """Per routed layer the mean over tasks of its placebo policies' perplexity. Empty for other networks."""
        if self._fusion is None or self._optimizer is None:
            return {}
        return dict(zip(self._fusion.routed_layers(), self._optimizer.placebo_perplexities(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint beside the policies themselves. Empty for other networks."""
        return {} if self._optimizer is None else self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state)
