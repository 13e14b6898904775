"""Fusion networks: rows_BD -> fused_BTH, one file per network, one interface.

A network is an nn.Module that TorchScript can script, with `forward(rows_BD) -> fused_BTH` and `output_width` (H).
Its configuration stands beside it and builds it: `config.build(input_width, num_tasks)`.
"""

from model.fusion.adatt import AdaTT, AdaTTConfig

FusionConfig = AdaTTConfig

__all__ = ["AdaTT", "AdaTTConfig", "FusionConfig"]
