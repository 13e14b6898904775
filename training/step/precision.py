"""Precision of the dense part: float32, TF32 products on GPUs, or bfloat16 by autocast. Weights are float32 in all."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bfloat16"]


def set_products(precision: Precision) -> None:
    """Switch TF32 on or off for the float32 matrix products of this process."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Around a forward pass of the dense part."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
