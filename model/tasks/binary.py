"""Yes/no outcomes: one logit, answered by its sigmoid.

Shapes: B rows.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from model.strict_yaml import StrictModel
from model.tasks.task import BaseTask, Floats, Mask, Scales

if TYPE_CHECKING:
    from torch import nn


class FocalTerm(StrictModel):
    """Focal loss beside cross entropy (Lin et al., ICCV 2017): `weight` times (1 - q)^gamma * -log q.

    q is the probability of the row's own label. `alpha` weighs positives, 1 - alpha negatives. Without it both weigh 1.
    """

    weight: float = Field(gt=0, le=1e6, allow_inf_nan=False)
    gamma: float = Field(default=2.0, gt=0, le=10)
    alpha: float | None = Field(default=None, gt=0, lt=1)


class JointTerm(StrictModel):
    """Joint ranking and calibration (Sheng et al., KDD 2023): `weight` times a loss that compares a request's rows."""

    weight: float = Field(gt=0, le=1e6, allow_inf_nan=False)


class LossTerms(StrictModel):
    """Terms beside cross entropy. One that is named replaces the schema's, null takes it away."""

    focal: FocalTerm | None = None
    jrc: JointTerm | None = None


class BinaryTask(BaseTask):
    """A yes/no outcome. `label` is a 0/1 column.

    `positive_weight` counts the loss of a positive row that many times. Answers stay calibrated for the log as it is.
    `focal` adds a second loss, which moves answers towards 1/2. `jrc` adds one that compares the rows of a request.
    """

    calibrated_by: ClassVar[tuple[str, ...]] = ("platt", "isotonic")

    kind: Literal["binary"]
    negative_sampling_rate: float = Field(default=1.0, gt=0, le=1)
    positive_weight: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)
    focal: FocalTerm | None = None
    jrc: JointTerm | None = None

    @model_validator(mode="after")
    def _check_focal(self) -> Self:
        if self.focal is not None and self.positive_weight != 1.0:
            raise ValueError(
                f"positive_weight ({self.positive_weight:g}) keeps answers calibrated and a focal loss does not; give "
                "one of the two (focal.alpha weighs positives too)"
            )
        return self

    @property
    def chain_fault(self) -> str | None:
        """Sampled negatives: the dropped rows are missing in the other tasks too, whose odds no one factor corrects."""
        if self.negative_sampling_rate == 1:
            return None
        rate = f"negative_sampling_rate {self.negative_sampling_rate:g}"
        return f"'{self.name}' has {rate}, and its dropped rows are missing in the other tasks of the chain too"

    @property
    def has_base_logit(self) -> bool:
        """True with `jrc`."""
        return self.jrc is not None

    def are_labels(self, values_B: Floats) -> Mask:
        """Mask of 0 and 1."""
        return np.isin(values_B, (0.0, 1.0))

    @classmethod
    def answers(cls, tasks: Sequence[Self], scales: Scales) -> "nn.Module":
        """Logits -> probabilities."""
        from model.tasks.answers import Probabilities  # torch, which a schema needs not

        return Probabilities([task.negative_sampling_rate for task in tasks])
