"""Quantities: one logit, the standardised prediction, answered in the label's own unit.

Shapes: B rows.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np

from model.tasks.task import BaseTask, Floats, Mask, Scales

if TYPE_CHECKING:
    from torch import nn

Transform = Literal["none", "log1p"]


class RegressionTask(BaseTask):
    """A quantity >= 0: learned on the transformed, standardised scale, answered in the label's own unit."""

    is_probability: ClassVar[bool] = False
    calibrated_by: ClassVar[tuple[str, ...]] = ("label_mean",)

    kind: Literal["regression"]
    transform: Transform = "none"

    @property
    def scaling(self) -> str:
        """The transform."""
        return self.transform

    def transformed(self, labels: Floats) -> Floats:
        """log1p of labels, where the schema says so."""
        return np.log1p(labels) if self.transform == "log1p" else labels

    def inverse(self, values: Floats) -> Floats:
        """Labels in their own unit."""
        return np.expm1(values) if self.transform == "log1p" else values

    def upper(self, scales: Scales) -> float:
        """The largest label of the training split, about."""
        return scales[self.name].upper

    def are_labels(self, values_B: Floats) -> Mask:
        """Mask of finite numbers >= 0."""
        with np.errstate(invalid="ignore"):
            return (values_B >= 0) & np.isfinite(values_B)

    @classmethod
    def answers(cls, tasks: Sequence[Self], scales: Scales) -> "nn.Module":
        """Standardised predictions -> quantities."""
        from model.tasks.answers import Quantities  # torch, which a schema needs not

        return Quantities([scales[task.name] for task in tasks], [task.transform == "log1p" for task in tasks])
