"""Fusion networks: rows_BD -> fused_BTH, one file per network, one interface.

A network is an nn.Module with `forward(rows_BD) -> fused_BTH`, `output_width` (H), `slots(tasks)`, its parameters by
plain names (model/fusion/slots.py), and `frozen(num_tasks)`, the network as data for scoring (model/fusion/frozen.py).
One that mixes experts also has `expert_weights(rows_BD)`, and unit_and_expert_names (model/fusion/names.py) names what
it mixes. Its configuration is in the same file and builds it: `config.build(input_width, num_tasks)`. `kind` chooses
it. The other files are what networks share.

AITM goes along chains of tasks: `build_network` is for code that has any configuration and the tasks' chains.
"""

from collections.abc import Sequence
from typing import Annotated, get_args

from pydantic import BeforeValidator, Field

from model.fusion.adatt import AdaTT, AdaTTConfig
from model.fusion.aitm import AITM, AITMConfig
from model.fusion.cross_stitch import CrossStitch, CrossStitchConfig
from model.fusion.learned_routing import LearnedRouting, LearnedRoutingConfig
from model.fusion.mmoe import MMoE, MMoEConfig
from model.fusion.no_sharing import NoSharing, NoSharingConfig
from model.fusion.ple import PLE, PLEConfig
from model.fusion.routing import FixedRandomRoutingConfig, FixedRouting
from model.fusion.shared_bottom import SharedBottom, SharedBottomConfig
from model.strict_yaml import refuse_unknown_kind

FusionConfig = Annotated[
    AdaTTConfig
    | SharedBottomConfig
    | MMoEConfig
    | PLEConfig
    | CrossStitchConfig
    | NoSharingConfig
    | FixedRandomRoutingConfig
    | LearnedRoutingConfig
    | AITMConfig,
    Field(discriminator="kind"),
    BeforeValidator(lambda data: refuse_unknown_kind(data, KINDS, "network")),
]

# Every name that `kind` may have.
KINDS: list[str] = [
    kind for config in get_args(get_args(FusionConfig)[0]) for kind in get_args(config.model_fields["kind"].annotation)
]

FusionNetwork = AdaTT | SharedBottom | MMoE | PLE | CrossStitch | NoSharing | FixedRouting | LearnedRouting | AITM


def build_network(
    config: FusionConfig, input_width: int, num_tasks: int, given: Sequence[int | None] = ()
) -> FusionNetwork:
    """The network of a configuration for rows of `input_width` columns. `given` has the place of the task that each is
    given, where any is. Raises ValueError where sizes or chains do not fit."""
    if isinstance(config, AITMConfig):
        return config.build(input_width, num_tasks, given)
    return config.build(input_width, num_tasks)


__all__ = [
    "AITM",
    "KINDS",
    "PLE",
    "AITMConfig",
    "AdaTT",
    "AdaTTConfig",
    "CrossStitch",
    "CrossStitchConfig",
    "FixedRandomRoutingConfig",
    "FixedRouting",
    "FusionConfig",
    "FusionNetwork",
    "LearnedRouting",
    "LearnedRoutingConfig",
    "MMoE",
    "MMoEConfig",
    "NoSharing",
    "NoSharingConfig",
    "PLEConfig",
    "SharedBottom",
    "SharedBottomConfig",
    "build_network",
]
