"""Data augmentation: each image shifted (a random crop of the padded image), mirrored and turned, at random.

In: pixels. Out: pixels of the same shape. The three are one affine map and one lookup (bilinear, black outside) for a
whole batch. Draws are made on the CPU: a seed means the same on every device.

Shapes: B images, C channels, H by W pixels.
"""

import math
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor
from torch.nn import functional

from model.strict_yaml import StrictModel


class AugmentationConfig(StrictModel):
    """Random changes of an image. `padding`: the crop is shifted by up to so many pixels. `flip`: half of the images
    are mirrored left to right. `rotation_degrees`: rotated by up to so much either way."""

    padding: NonNegativeInt = 4
    flip: bool = True
    rotation_degrees: Annotated[float, Field(ge=0, le=180, allow_inf_nan=False)] = 10.0


def augment(images_BCHW: Tensor, config: AugmentationConfig, generator: torch.Generator) -> Tensor:
    """The images (floating point), each changed by its own draw."""
    num_rows, _, height, width = images_BCHW.shape
    low, high = -config.padding, config.padding + 1
    shift_y_B, shift_x_B = torch.randint(low, high, (2, num_rows), generator=generator).float()
    mirrored_B = (torch.rand(num_rows, generator=generator) < 0.5) & config.flip
    turn_B = (2 * torch.rand(num_rows, generator=generator) - 1) * math.radians(config.rotation_degrees)
    flip_B = 1.0 - 2.0 * mirrored_B.float()
    cosine_B, sine_B = turn_B.cos(), turn_B.sin()
    # The source of each target pixel, in units of half the image. A rotation in pixels is none in those, unless square.
    theta_B23 = torch.stack(
        [
            torch.stack([flip_B * cosine_B, -sine_B * height / width, 2 * shift_x_B / width], dim=1),
            torch.stack([flip_B * sine_B * width / height, cosine_B, 2 * shift_y_B / height], dim=1),
        ],
        dim=1,
    ).to(images_BCHW.device)
    grid_BHW2 = functional.affine_grid(theta_B23, list(images_BCHW.shape), align_corners=False)
    return functional.grid_sample(images_BCHW, grid_BHW2, padding_mode="zeros", align_corners=False)
