"""Learning the policies of a ranker's learned routing network from the rewards of its training steps.

In: the routes that a training step drew, its logits and labels. Out: changed policies. The reward of a row and task is
the same for every layer on its route; how it moves them: training/wpl.py.

Shapes: B rows, T tasks.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.fusion.learned_routing import LearnedRouting
from model.schema import BinaryTask, FeedSchema
from training.seeds import derived_seed
from training.wpl import PolicyOptimizer


class PolicyLearner:
    """Moves the policies of a network; for a network without policies it does nothing at all."""

    def __init__(self, fusion: nn.Module, schema: FeedSchema, seed: int) -> None:
        """Raises ValueError where the reward needs right answers and a task has none."""
        self._fusion = fusion if isinstance(fusion, LearnedRouting) else None
        self._seed = seed
        self._optimizer: PolicyOptimizer | None = None
        self._is_binary_T = torch.tensor([isinstance(task, BinaryTask) for task in schema.tasks])
        if self._fusion is None:
            return
        config = self._fusion.config
        for task in schema.tasks:
            if config.reward == "correct" and not isinstance(task, BinaryTask):
                raise ValueError(
                    f"network.fusion.reward: correct: task '{task.name}' is a regression and has no right answer; "
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
        self, logits_BT: Tensor, targets_BT: Tensor, observed_BT: Tensor, row_weights_B: Tensor | None = None
    ) -> None:
        """After the modules' step: rewards the routes that this step drew. Means are weighted where rows are."""
        if self._fusion is None or self._optimizer is None or self._fusion.is_warm_up:
            return
        counts_BT = observed_BT if row_weights_B is None else observed_BT * row_weights_B.unsqueeze(1)
        self._optimizer.step(self._rewards(logits_BT.detach(), targets_BT), counts_BT)

    def _rewards(self, logits_BT: Tensor, targets_BT: Tensor) -> Tensor:
        assert self._fusion is not None
        if self._fusion.config.reward == "correct":
            return torch.where((logits_BT > 0) == (targets_BT > 0.5), 1.0, -1.0).double()
        entropy_BT = functional.binary_cross_entropy_with_logits(logits_BT, targets_BT, reduction="none")
        # A normal distribution of unit spread around the standardised prediction, up to a constant.
        squared_BT = 0.5 * (logits_BT - targets_BT).square()
        return -torch.where(self._is_binary_T, entropy_BT, squared_BT).double()

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the policies themselves; empty for other networks."""
        return {} if self._optimizer is None else self._optimizer.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores `state()`."""
        if self._optimizer is not None:
            self._optimizer.load_state(state)
