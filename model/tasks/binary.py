"""Yes/no outcomes: one logit, answered by its sigmoid.

Shapes: B rows.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from model.tasks.task import BaseTask, Floats, Mask, Scales

if TYPE_CHECKING:
    from torch import nn


class BinaryTask(BaseTask):
    """A yes/no outcome. `label` is a 0/1 column.

    `positive_weight` counts the loss of a positive row that many times. Answers stay calibrated for the log as it is.
    """

    calibrated_by: ClassVar[tuple[str, ...]] = ("platt", "isotonic")

    kind: Literal["binary"]
    negative_sampling_rate: float = Field(default=1.0, gt=0, le=1)
    positive_weight: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)

    def are_labels(self, values_B: Floats) -> Mask:
        """Mask of 0 and 1."""
        return np.isin(values_B, (0.0, 1.0))

    @classmethod
    def answers(cls, tasks: Sequence[Self], scales: Scales) -> "nn.Module":
        """Logits -> probabilities."""
        from model.tasks.answers import Probabilities  # torch, which a schema needs not

        return Probabilities([task.negative_sampling_rate for task in tasks])
