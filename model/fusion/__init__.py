"""Fusion networks: rows_BD -> fused_BTH, one file per network, one interface.

A network is an nn.Module that TorchScript can script, with `forward(rows_BD) -> fused_BTH` and `output_width` (H).
Its configuration stands beside it and builds it: `config.build(input_width, num_tasks)`; `kind` chooses it.
"""

from typing import Annotated

from pydantic import Field

from model.fusion.adatt import AdaTT, AdaTTConfig
from model.fusion.cross_stitch import CrossStitch, CrossStitchConfig
from model.fusion.mmoe import MMoE, MMoEConfig
from model.fusion.no_sharing import NoSharing, NoSharingConfig
from model.fusion.ple import PLE, PLEConfig
from model.fusion.routing import FixedRandomRoutingConfig, FixedRouting
from model.fusion.shared_bottom import SharedBottom, SharedBottomConfig

FusionConfig = Annotated[
    AdaTTConfig
    | SharedBottomConfig
    | MMoEConfig
    | PLEConfig
    | CrossStitchConfig
    | NoSharingConfig
    | FixedRandomRoutingConfig,
    Field(discriminator="kind"),
]

__all__ = [
    "PLE",
    "AdaTT",
    "AdaTTConfig",
    "CrossStitch",
    "CrossStitchConfig",
    "FixedRandomRoutingConfig",
    "FixedRouting",
    "FusionConfig",
    "MMoE",
    "MMoEConfig",
    "NoSharing",
    "NoSharingConfig",
    "PLEConfig",
    "SharedBottom",
    "SharedBottomConfig",
]
