"""Balancing of tasks: how the losses of a batch become one training step. `balancing: {kind: ...}` chooses it.

none (loss weights alone), uncertainty, gradnorm, and the gradient methods pcgrad, cagrad, mgda, nash_mtl, upgrad and
graddrop. A configuration builds its module: `config.build(losses, seed) -> Balancing`.

CPU time of a training step on one thread beside `none` (medians of 35 interleaved steps, AdaTT-sp): uncertainty 1.0;
gradnorm and every gradient method 1.9 to 2.0 with the 3 tasks of configs/census.yaml (19 ms), 3.9 to 4.1 with the 7 of
configs/kuairand.yaml (42 ms): one pass a task down to the embedding row. What then combines the gradients is 5 % of it.
"""

from typing import Annotated, get_args

from pydantic import BeforeValidator, Field

from model.strict_yaml import refuse_unknown_kind
from training.balancing.base import Balancing, NoBalancingConfig
from training.balancing.gradients import CAGradConfig, GradientBalancing, GradientConfig
from training.balancing.gradnorm import GradNorm, GradNormConfig
from training.balancing.uncertainty import UncertaintyConfig, UncertaintyWeighting

BalancingConfig = Annotated[
    NoBalancingConfig | UncertaintyConfig | GradNormConfig | GradientConfig | CAGradConfig,
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
    "KINDS",
    "Balancing",
    "BalancingConfig",
    "GradNorm",
    "GradientBalancing",
    "NoBalancingConfig",
    "UncertaintyWeighting",
]
