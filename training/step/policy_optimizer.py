"""The learner of policies that share a route, and its placebo.

A placebo policy learns as a policy does, from the same rewards of the same rows. But its modules are drawn apart from
the routes that were taken, so no module is better than another. What a placebo decides is chance: a policy's
perplexity shows learning only where it is below its placebo's.

Shapes: B rows, T tasks, M modules.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from model.fusion.policy import Policy, PolicyConfig, perplexities
from training.step.policy_updates import UPDATES


class PolicyOptimizer:
    """Steps `policies` (at least one), which share the route and so the reward of each row and task."""

    def __init__(self, policies: Sequence[Policy], config: PolicyConfig) -> None:
        self._placebos = [
            Policy(len(policy.policy_TM), policy.policy_TM.shape[1], config.policy).to(policy.policy_TM.device)
            for policy in policies
        ]
        self._update, self._placebo_update = (UPDATES[config.learner](of, config) for of in (policies, self._placebos))

    def step(self, rewards_BT: Tensor, counts_BT: Tensor, seed: int) -> None:
        """Learn from the rewards of the last draws. counts_BT says how much each entry counts (0: not at all). `seed`
        is that of the placebos' draws."""
        self._update.step(rewards_BT, counts_BT)
        generator = torch.Generator(rewards_BT.device).manual_seed(seed)
        for placebo in self._placebos:
            placebo.draw(len(rewards_BT), generator, is_shared=False)
        self._placebo_update.step(rewards_BT, counts_BT)

    def placebo_perplexities(self) -> list[float]:
        """Mean over tasks of each layer's placebo policies."""
        return [float(perplexities(placebo.policy_TM, placebo.kind).mean()) for placebo in self._placebos]

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint beside the policies themselves."""
        return {
            "update": self._update.state_dict(),
            "placebo_update": self._placebo_update.state_dict(),
            "placebos": [placebo.state_dict() for placebo in self._placebos],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        self._update.load_state_dict(state["update"])
        self._placebo_update.load_state_dict(state["placebo_update"])
        for placebo, saved in zip(self._placebos, state["placebos"], strict=True):
            placebo.load_state_dict(saved)
