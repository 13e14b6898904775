"""Routing policies: which module each task takes ("Re-examining Routing Networks", sections 2.2 and A.1).

A policy is a table of numbers per task that stands for a distribution over M modules. It is learned from rewards
(training/step/routing.py), not by the gradient of the loss. What the modules are is not its business.

Training draws from a policy, as the public code does, and evaluation takes each task's most probable module. The
paper's Algorithm 1 takes the most probable one in training too, which would never try another. Its immediate rewards of
single actions are 0 here, as in the paper's experiments without a collaboration reward: every layer of a route has the
final reward of its row. Policies are stepped once a batch, after the modules, not once an example.

Shapes: B rows, T tasks, M modules.
"""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor, nn

from model.strict_yaml import StrictModel

PolicyKind = Literal["softmax", "clip", "as_published"]
# The published code's guard against a sum of 0 (A.1).
PUBLISHED_EPSILON = 1e-6


class PolicyConfig(StrictModel):
    """Learning of policies.

    `policy` is how a table of numbers becomes probabilities: `softmax` (the paper's improved variant: no module is ever
    out of reach), `clip` (the projection that the algorithm asks for), or `as_published` (the projection of the public
    code, to show its fault). `reward` is +1 for a right answer and -1 for a wrong one, as published, or the
    log-likelihood of the label. For the first `warm_up_epochs` tasks share every module and no policy is learned.

    `learner` is the update (training/step/policy_updates.py): `action_values` keeps a value of each module from batch
    to batch, each row moving its module's by `value_step_size`. `batch_means` takes one batch's mean rewards, against a
    task's running mean that a batch moves by `reward_history`. `public_code` is that of the published implementation,
    with its `loss_reduction` over a batch."""

    policy: PolicyKind = "softmax"
    learner: Literal["action_values", "batch_means", "public_code"] = "action_values"
    reward: Literal["correct", "log_likelihood"] = "correct"
    # The paper's router learns at 2e-2, its modules far slower.
    policy_learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.02
    policy_optimizer: Literal["adam", "sgd"] = "adam"
    value_step_size: Annotated[float, Field(gt=0, le=1)] = 0.001
    reward_history: Annotated[float, Field(gt=0, le=1)] = 0.05
    loss_reduction: Literal["mean", "none"] = "mean"
    warm_up_epochs: NonNegativeInt = 0

    @model_validator(mode="after")
    def _check_learner(self) -> Self:
        for key, learner in LEARNER_OF.items():
            is_changed = getattr(self, key) != type(self).model_fields[key].default
            if is_changed and self.learner != learner:
                raise ValueError(f"{key}: only learner: {learner} has it, and learner is {self.learner}; leave it out")
        return self


# The learner that reads a key.
LEARNER_OF = {"value_step_size": "action_values", "reward_history": "batch_means", "loss_reduction": "public_code"}


class Policy(nn.Module):
    """Per task a policy over the modules of a layer. `policy_TM` starts even for all. `drawn_BT` is the last draw."""

    def __init__(self, num_tasks: int, num_modules: int, kind: PolicyKind) -> None:
        super().__init__()
        # No gradient of the loss: rewards alone move a policy, by an optimizer of its own.
        self.policy_TM = nn.Parameter(torch.full((num_tasks, num_modules), 1.0 / num_modules), requires_grad=False)
        self.kind: str = kind
        self.drawn_BT: Tensor = torch.empty(0, dtype=torch.int64)

    @torch.jit.unused
    def draw(self, num_rows: int, generator: torch.Generator | None, *, is_shared: bool) -> None:
        """Draw `drawn_BT`. Shared: one module for all tasks of a row, each as likely, so that all of them learn."""
        num_tasks, num_modules = self.policy_TM.shape
        if is_shared:
            device = self.policy_TM.device
            one_B1 = torch.randint(num_modules, (num_rows, 1), generator=generator, device=device)
            self.drawn_BT = one_B1.expand(-1, num_tasks)
        elif num_rows:
            chances_TM = probabilities(self.policy_TM, self.kind)
            self.drawn_BT = torch.multinomial(chances_TM, num_rows, replacement=True, generator=generator).t()
        else:
            self.drawn_BT = torch.empty(0, num_tasks, dtype=torch.int64, device=self.policy_TM.device)


def probabilities(policy_TM: Tensor, kind: str) -> Tensor:
    """The distributions that a table of policies stands for, differentiable."""
    if kind == "softmax":
        return torch.softmax(policy_TM, dim=1)
    # A `clip` table is kept on the simplex by the projection after each step, so it is its own distribution.
    return published_projection(policy_TM) if kind == "as_published" else policy_TM


def simplex_projection(policy_TM: Tensor) -> Tensor:
    """clip(pi) / sum(clip(pi)) with clip(x) = max(0, min(1, x)) (A.1). Even where every entry is clipped to 0."""
    clipped_TM = policy_TM.clamp(0.0, 1.0)
    sums_T1 = clipped_TM.sum(dim=1, keepdim=True)
    return torch.where(sums_T1 > 0, clipped_TM / sums_T1, 1.0 / policy_TM.shape[1])


def published_projection(policy_TM: Tensor) -> Tensor:
    """The projection of the public code: (pi - min(pi) + eps), normalised.

    Its fault: where a policy is even, as it is at the start, its derivative is about 1 / eps, so the first step throws
    the policy to an extreme. The least probable module then has a probability of about eps and is hardly ever drawn
    again."""
    shifted_TM = policy_TM - policy_TM.min(dim=1, keepdim=True).values + PUBLISHED_EPSILON
    return shifted_TM / shifted_TM.sum(dim=1, keepdim=True)


def perplexities(policy_TM: Tensor, kind: str) -> Tensor:
    """[T] exp of each task's entropy, float64: 1 is decided, M even."""
    entropy_T: Tensor = torch.special.entr(probabilities(policy_TM.detach().double(), kind)).sum(dim=1)
    return entropy_T.exp()
