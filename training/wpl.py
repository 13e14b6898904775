"""WPL (Abdallah and Lesser, 2006): moving routing policies by the rewards of what they drew.

In: the policies of a step's routed layers, with their draws, and each row's reward. Out: changed policies. With R the
mean reward of the rows that drew an action, and V the task's running mean, the action's advantage is R - V; WPL weighs
it by pi(a) where it is negative and by 1 - pi(a) where it is not, so that a policy slows down as it nears the simplex's
edge. An optimizer of its own climbs the weighted advantages.

Shapes: B rows, T tasks, M modules.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from model.fusion.policy import Policy, PolicyConfig, probabilities, simplex_projection


class PolicyOptimizer:
    """Steps `policies` (at least one), which share the route and so the reward of each row and task."""

    def __init__(self, policies: Sequence[Policy], config: PolicyConfig) -> None:
        self._policies = list(policies)
        self._history = config.reward_history
        kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[config.policy_optimizer]
        tables = [policy.policy_TM for policy in self._policies]
        self._optimizer = kind(tables, lr=config.policy_learning_rate)
        # The running mean reward of each task; NaN until its first labels are seen.
        self._mean_T = torch.full((len(tables[0]),), torch.nan, dtype=torch.float64, device=tables[0].device)

    @torch.no_grad()
    def step(self, rewards_BT: Tensor, counts_BT: Tensor) -> None:
        """Learns from the rewards of the last draws; counts_BT says how much each entry counts (0: not at all)."""
        counts_T = counts_BT.sum(dim=0)
        batch_mean_T = (rewards_BT * counts_BT).sum(dim=0) / counts_T
        moved_T = self._mean_T + self._history * (batch_mean_T - self._mean_T)
        running_T = torch.where(self._mean_T.isnan(), batch_mean_T, moved_T)
        self._mean_T = torch.where(counts_T > 0, running_T, self._mean_T)
        for policy in self._policies:
            policy.policy_TM.grad = policy_gradient(policy, rewards_BT, counts_BT, self._mean_T)
        self._optimizer.step()
        # The modules' optimizer may hold these tables too: without a gradient it leaves them alone.
        self._optimizer.zero_grad(set_to_none=True)
        for policy in self._policies:
            if policy.kind == "clip":
                policy.policy_TM.copy_(simplex_projection(policy.policy_TM))

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the policies themselves."""
        return {"optimizer": self._optimizer.state_dict(), "mean_T": self._mean_T}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores `state()`."""
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
