"""Learners of routing policies: from the rewards of a batch's draws to one step of the policies.

In: policies with their last draws, a reward for each row and task. Out: moved policies. All of a row's layers have the
row's reward. An optimizer of its own steps the policies, once a batch whatever the batch's size.

`action_values` and `batch_means` are WPL (Abdallah and Lesser, 2006). With A(a) the advantage of module a, WPL weighs
it by pi(a) where it is negative and by 1 - pi(a) where it is not, so that a policy slows down as it nears the simplex's
edge. The weights are unequal, so noise in A pushes towards the even policy, and A must be known better than from one
batch.

`public_code` is the update of the published implementation, by its description. With Q(a) a learned value of each
module, all from 1 / M on, g = R - Q(a) for a row of reward R that drew a, and l = log pi(a), the row's loss is

    (l - l f)^2 + (Q(a) - R)^2        f = 1 + g where g < 0, else 2 - g; l f and g are constants

The factors are those of a probability, while l is its logarithm. So a bad row raises its module's probability, and a
good one does only where g > 1. With Q at its mean and a share p of rewards at 1, the others at -1, the mean step has
the sign of 3 p - 4 p^2: it raises what was drawn below three in four right answers, and lowers it above.

Shapes: B rows, T tasks, M modules.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.fusion.policy import Policy, PolicyConfig, probabilities, simplex_projection

# The least probability that a logarithm is taken of, as torch's categorical distribution has it.
SMALLEST = torch.finfo(torch.float32).eps


class PolicyUpdate(ABC):
    """Steps `policies` (at least one), which share the route and so the reward of each row and task."""

    def __init__(self, policies: Sequence[Policy], config: PolicyConfig) -> None:
        self._policies = list(policies)
        self._rate, self._name = config.policy_learning_rate, f"learner: {config.learner}"
        kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[config.policy_optimizer]
        self._optimizer = kind([*self._tables(), *self._learned_values()], lr=config.policy_learning_rate)

    @torch.no_grad()
    def step(self, rewards_BT: Tensor, counts_BT: Tensor) -> None:
        """Learn from the rewards of the last draws. counts_BT says how much each entry counts (0: not at all).

        Raises ValueError where a policy is not finite."""
        rewards_BT, counts_BT = rewards_BT.double(), counts_BT.double()
        self._see(rewards_BT, counts_BT)
        is_seen_T1 = (counts_BT.sum(dim=0) > 0).unsqueeze(1)
        for number, policy in enumerate(self._policies):
            gradient_TM = self._gradient(number, policy, rewards_BT, counts_BT)
            # A task without a reward in this batch has shown nothing.
            policy.policy_TM.grad = torch.where(is_seen_T1, gradient_TM, 0.0).to(policy.policy_TM.dtype)
        self._optimizer.step()
        # The modules' optimizer may have these tables too: without a gradient it leaves them alone.
        self._optimizer.zero_grad(set_to_none=True)
        for policy in self._policies:
            if not torch.isfinite(policy.policy_TM).all():
                raise ValueError(
                    f"policy_learning_rate: {self._rate:g}: a policy is not finite after this step of {self._name}; "
                    "lower the rate"
                )
            if policy.kind == "clip":
                policy.policy_TM.copy_(simplex_projection(policy.policy_TM))

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint beside the policies themselves."""
        return {"optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        self._optimizer.load_state_dict(state["optimizer"])

    def _tables(self) -> list[nn.Parameter]:
        return [policy.policy_TM for policy in self._policies]

    def _learned_values(self) -> list[nn.Parameter]:
        """Values that the optimizer steps beside the policies."""
        return []

    def _see(self, rewards_BT: Tensor, counts_BT: Tensor) -> None:
        """Take in what a batch says of tasks, before any layer is stepped."""
        return

    @abstractmethod
    def _gradient(self, number: int, policy: Policy, rewards_BT: Tensor, counts_BT: Tensor) -> Tensor:
        """The descent gradient of the `policy_TM` of layer `number`."""


class BatchMeans(PolicyUpdate):
    """WPL on the advantages of one batch: its mean reward by module, less the task's running mean. A running mean moves
    by `reward_history` a batch."""

    def __init__(self, policies: Sequence[Policy], config: PolicyConfig) -> None:
        super().__init__(policies, config)
        self._history = config.reward_history
        # NaN until a task's first labels are seen.
        table = policies[0].policy_TM
        self._mean_T = torch.full((len(table),), torch.nan, dtype=torch.float64, device=table.device)

    def _see(self, rewards_BT: Tensor, counts_BT: Tensor) -> None:
        counts_T = counts_BT.sum(dim=0)
        batch_mean_T = (rewards_BT * counts_BT).sum(dim=0) / counts_T
        moved_T = self._mean_T + self._history * (batch_mean_T - self._mean_T)
        running_T = torch.where(self._mean_T.isnan(), batch_mean_T, moved_T)
        self._mean_T = torch.where(counts_T > 0, running_T, self._mean_T)

    def _gradient(self, number: int, policy: Policy, rewards_BT: Tensor, counts_BT: Tensor) -> Tensor:
        counts_TM, sums_TM = sums_by_module(policy, rewards_BT, counts_BT)
        # An action that no row drew has shown nothing.
        advantages_TM = torch.where(counts_TM > 0, sums_TM / counts_TM - self._mean_T.unsqueeze(1), 0.0)
        return wpl_gradient(policy, advantages_TM)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: the optimizer's and the running means."""
        return super().state_dict() | {"mean_T": self._mean_T}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        super().load_state_dict(state)
        self._mean_T = state["mean_T"].to(self._mean_T.device)


class RunningMeans:
    """Means of rows that come batch by batch.

    n rows of a batch move a mean by 1 - (1 - step_size)^n of the way to their own mean, as n equal rows would one after
    the other. Means are of the rows so far: none starts at 0."""

    def __init__(self, like: Tensor, step_size: float) -> None:
        self._step_size = step_size
        self._sums = torch.zeros_like(like, dtype=torch.float64)
        self._weights = torch.zeros_like(like, dtype=torch.float64)

    def add(self, counts: Tensor, sums: Tensor) -> None:
        """Take in a batch's rows by their number and sum."""
        kept = (1 - self._step_size) ** counts
        means = torch.where(counts > 0, sums / counts, 0.0)
        self._sums = kept * self._sums + (1 - kept) * means
        self._weights = kept * self._weights + (1 - kept)

    @property
    def means(self) -> Tensor:
        """The means. 0 where there was no row."""
        return torch.where(self._weights > 0, self._sums / self._weights, 0.0)

    @property
    def is_known(self) -> Tensor:
        """True where there was a row."""
        return self._weights > 0

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {"sums": self._sums, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        self._sums, self._weights = (state[name].to(self._sums.device) for name in ("sums", "weights"))


class ActionValues(PolicyUpdate):
    """WPL on values that are kept for each task, layer and module from batch to batch.

    A value is the running mean of the rewards of the rows that drew the module, less the running mean of all of the
    task's rows at their time: what lifts all modules together moves no value. The step size of both is for each row."""

    def __init__(self, policies: Sequence[Policy], config: PolicyConfig) -> None:
        super().__init__(policies, config)
        self._of_tasks = RunningMeans(policies[0].policy_TM[:, 0], config.value_step_size)
        self._of_modules = [RunningMeans(policy.policy_TM, config.value_step_size) for policy in policies]

    def _see(self, rewards_BT: Tensor, counts_BT: Tensor) -> None:
        self._of_tasks.add(counts_BT.sum(dim=0), (rewards_BT * counts_BT).sum(dim=0))

    def _gradient(self, number: int, policy: Policy, rewards_BT: Tensor, counts_BT: Tensor) -> Tensor:
        counts_TM, sums_TM = sums_by_module(policy, rewards_BT, counts_BT)
        values = self._of_modules[number]
        values.add(counts_TM, sums_TM - counts_TM * self._of_tasks.means.unsqueeze(1))
        chances_TM = probabilities(policy.policy_TM.double(), policy.kind)
        known_TM = chances_TM * values.is_known
        expected_T1 = (known_TM * values.means).sum(dim=1, keepdim=True) / known_TM.sum(dim=1, keepdim=True)
        return wpl_gradient(policy, torch.where(values.is_known, values.means - expected_T1, 0.0))

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: the optimizer's and all values."""
        values = [of_layer.state_dict() for of_layer in self._of_modules]
        return super().state_dict() | {"tasks": self._of_tasks.state_dict(), "modules": values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        super().load_state_dict(state)
        self._of_tasks.load_state_dict(state["tasks"])
        for values, of_layer in zip(self._of_modules, state["modules"], strict=True):
            values.load_state_dict(of_layer)


class PublicCode(PolicyUpdate):
    """The published implementation's update. The policies' optimizer steps its values too.

    `loss_reduction: mean` averages the losses over the rows and tasks of a batch, `none` adds them up."""

    def __init__(self, policies: Sequence[Policy], config: PolicyConfig) -> None:
        self._is_mean = config.loss_reduction == "mean"
        self._values = [
            nn.Parameter(torch.full_like(policy.policy_TM, 1.0 / policy.policy_TM.shape[1]), requires_grad=False)
            for policy in policies
        ]
        super().__init__(policies, config)

    def _learned_values(self) -> list[nn.Parameter]:
        return self._values

    def _gradient(self, number: int, policy: Policy, rewards_BT: Tensor, counts_BT: Tensor) -> Tensor:
        counts_TM, sums_TM = sums_by_module(policy, rewards_BT, counts_BT)
        values_TM = self._values[number].double()
        share = 1 / counts_TM.sum().clamp(min=1) if self._is_mean else 1.0
        self._values[number].grad = (2 * share * (counts_TM * values_TM - sums_TM)).to(policy.policy_TM.dtype)
        # 1 - f of each row: the factor of 2 l in the loss's derivative by l.
        gains_BT = rewards_BT - values_TM.gather(1, policy.drawn_BT.t()).t()
        slopes_BT = torch.where(gains_BT < 0, -gains_BT, gains_BT - 1)
        _, slopes_TM = sums_by_module(policy, slopes_BT, counts_BT)
        with torch.enable_grad():
            policy_TM = policy.policy_TM.detach().double().requires_grad_()
            logs_TM = log_probabilities(policy_TM, policy.kind)
            objective = (logs_TM * (2 * share * logs_TM.detach() * slopes_TM)).sum()
            (gradient_TM,) = torch.autograd.grad(objective, policy_TM)
        return gradient_TM

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: the optimizer's and the values."""
        return super().state_dict() | {"values": [values_TM.data for values_TM in self._values]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        super().load_state_dict(state)
        for values_TM, saved_TM in zip(self._values, state["values"], strict=True):
            values_TM.data.copy_(saved_TM)


UPDATES: dict[str, type[PolicyUpdate]] = {
    "action_values": ActionValues,
    "batch_means": BatchMeans,
    "public_code": PublicCode,
}


def sums_by_module(policy: Policy, rewards_BT: Tensor, counts_BT: Tensor) -> tuple[Tensor, Tensor]:
    """counts_TM and sums_TM of a batch's rows by the module that they drew."""
    taken_BTM = functional.one_hot(policy.drawn_BT, policy.policy_TM.shape[1]) * counts_BT.unsqueeze(2)
    return taken_BTM.sum(dim=0), (taken_BTM * rewards_BT.unsqueeze(2)).sum(dim=0)


def wpl_gradient(policy: Policy, advantages_TM: Tensor) -> Tensor:
    """The descent gradient of a layer's `policy_TM`: WPL's, through the way its kind makes probabilities."""
    with torch.enable_grad():
        policy_TM = policy.policy_TM.detach().double().requires_grad_()
        chances_TM = probabilities(policy_TM, policy.kind)
        (gradient_TM,) = torch.autograd.grad((chances_TM * wpl(advantages_TM, chances_TM.detach())).sum(), policy_TM)
    return -gradient_TM


def wpl(advantages_TM: Tensor, chances_TM: Tensor) -> Tensor:
    """WPL's weighted advantages: times pi(a) below 0, times 1 - pi(a) from 0 on."""
    return advantages_TM * torch.where(advantages_TM < 0, chances_TM, 1 - chances_TM)


def log_probabilities(policy_TM: Tensor, kind: str) -> Tensor:
    """Logarithms of a table's distributions, differentiable. `clip` is differentiated through its projection."""
    if kind == "softmax":
        return torch.log_softmax(policy_TM, dim=1)
    chances_TM = simplex_projection(policy_TM) if kind == "clip" else probabilities(policy_TM, kind)
    return chances_TM.clamp(min=SMALLEST).log()
