"""A Linear that is not trained.

Shapes: D inputs, H outputs.
"""

import warnings

import torch
from torch import Tensor, nn


def frozen_linear(weight_HD: Tensor, bias_H: Tensor | None, dtype: torch.dtype = torch.float32) -> nn.Linear:
    """A Linear with copies of these weights, not to be trained."""
    with warnings.catch_warnings():
        # A feed without request features adds nothing but biases there.
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        linear = nn.Linear(weight_HD.shape[1], weight_HD.shape[0], bias=bias_H is not None, device="meta")
    linear.weight = nn.Parameter(weight_HD.detach().to(dtype, copy=True).contiguous(), requires_grad=False)
    if bias_H is not None:
        linear.bias = nn.Parameter(bias_H.detach().to(dtype, copy=True).contiguous(), requires_grad=False)
    return linear
