"""Base of every kind of task: the operations in which kinds differ.

In: a task of the schema, checked. Out: its outputs, their range, and the module that makes answers of its logits. A
kind is a file beside this one, and its name in the union of model.tasks.

Shapes: B rows, N candidates, O outputs of some tasks.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from model.strict_yaml import Name, StrictModel

if TYPE_CHECKING:
    from torch import nn

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Of a label: no answer is above it, and sums of answers still fit a float32.
UPPER_LIMIT = float(np.float32(1e30))


class TargetScale(StrictModel):
    """Mean and scale of a task's label after its transform, on the training split, and the bound of its answers.

    `upper` is in the label's own unit, and a float32."""

    mean: float
    scale: float
    upper: float = Field(ge=0, le=UPPER_LIMIT)


# By task that has one.
Scales = Mapping[str, TargetScale]


class BaseTask(StrictModel):
    """The keys of every task. `mask` is a 0/1 column that says where the label counts.

    `given` names the task whose positive outcome is a condition of this one's (model/tasks/given.py)."""

    # False of answers in the label's own unit.
    is_probability: ClassVar[bool] = True
    # Kinds of model.calibration's maps that may follow its answers.
    calibrated_by: ClassVar[tuple[str, ...]]

    name: Name
    kind: str
    label: str = Field(min_length=1)
    loss_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    mask: str | None = None
    given: Name | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the numbers that the task's tower gives and that answers show: the task's own where it is one."""
        return (self.name,)

    @property
    def chain_fault(self) -> str | None:
        """The reason why the task cannot be in a chain, None where it can."""
        return f"'{self.name}' is a {self.kind} task, without a single probability to multiply"

    @property
    def has_base_logit(self) -> bool:
        """True of a task whose tower has a second number while it is trained, which its loss compares between rows."""
        return False

    @property
    def label_values(self) -> tuple[int | str, ...] | None:
        """Values of the label's column, None of a kind whose labels are numbers."""
        return None

    def are_labels(self, values_B: Floats) -> Mask:
        """Mask of the numbers that the label's column may have."""
        raise NotImplementedError

    @property
    def scaling(self) -> str | None:
        """The name of the transform before which labels are standardised, None of a kind whose labels have no scale."""
        return None

    def transformed(self, labels: Floats) -> Floats:
        """Labels on the scale where they are learned, before standardising."""
        return labels

    def inverse(self, values: Floats) -> Floats:
        """Inverse of `transformed`."""
        return values

    def upper(self, scales: Scales) -> float:
        """The bound of the task's answers: 1 of a probability."""
        return 1.0

    @classmethod
    def answers(cls, tasks: Sequence[Self], scales: Scales) -> "nn.Module":
        """The module of tasks of this kind: logits_NO -> answers_NO. TorchScript reads it."""
        raise NotImplementedError
