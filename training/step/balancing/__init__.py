"""Balancing of tasks: how the losses of a batch become one training step. `balancing: {kind: ...}` chooses it.

none (loss weights alone), uncertainty, famo, gradnorm, and the gradient methods pcgrad, cagrad, mgda, nash_mtl, upgrad
and graddrop. A configuration builds its module: `config.build(losses, seed) -> Balancing`.

gradnorm and the gradient methods make one backward pass a task, down to the embedding row, where `none` makes one in
all: benchmarks/results/balancing_cost.md has what a training step then costs (`make bench-balancing`).
"""

from typing import Annotated, get_args

from pydantic import BeforeValidator, Field

from model.strict_yaml import refuse_unknown_kind
from training.step.balancing.base import Balancing, NoBalancingConfig
from training.step.balancing.famo import FAMO, FAMOConfig
from training.step.balancing.gradients import CAGradConfig, GradientBalancing, GradientConfig
from training.step.balancing.gradnorm import GradNorm, GradNormConfig
from training.step.balancing.uncertainty import UncertaintyConfig, UncertaintyWeighting

BalancingConfig = Annotated[
    NoBalancingConfig | UncertaintyConfig | FAMOConfig | GradNormConfig | GradientConfig | CAGradConfig,
    Field(discriminator="kind"),
    BeforeValidator(lambda data: refuse_unknown_kind(data, KINDS, "balancing")),
]

# Every name that `kind` may have.
KINDS: list[str] = [
    kind
    for config in get_args(get_args(BalancingConfig)[0])
    for kind in get_args(config.model_fields["kind"].annotation)
]

__all__ = [
    "FAMO",
    "KINDS",
    "Balancing",
    "BalancingConfig",
    "GradNorm",
    "GradientBalancing",
    "NoBalancingConfig",
    "UncertaintyWeighting",
]
