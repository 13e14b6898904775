"""One of several classes: a logit a class, answered by their softmax.

Shapes: B rows.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import field_validator

from model.strict_yaml import Name
from model.tasks.task import BaseTask, Floats, Mask, Scales

if TYPE_CHECKING:
    from torch import nn

MOST_CLASSES = 32
# Integers that stay distinct as float64, as which labels are read.
_EXACT = 2**53


class MulticlassTask(BaseTask):
    """One of 2 to 32 classes. `label` is a string column of their names, or an integer or string column and `classes` a
    mapping from its values to names."""

    calibrated_by: ClassVar[tuple[str, ...]] = ("bias_corrected_temperature",)

    kind: Literal["multiclass"]
    classes: tuple[Name, ...] | dict[int | str, Name]

    @field_validator("classes", mode="before")
    @classmethod
    def _check_classes(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            value = {_class_value(key): name for key, name in value.items()}
        elif not isinstance(value, list | tuple):
            raise ValueError("a list of names, or a mapping from the column's values to names ({1: bad, 2: good})")
        names = list(value.values() if isinstance(value, dict) else value)
        if not 2 <= len(names) <= MOST_CLASSES:
            raise ValueError(f"2 to {MOST_CLASSES} classes, got {len(names)}")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"class {name!r} is there {names.count(name)} times")
        return value

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of outputs."""
        return tuple(self.classes.values()) if isinstance(self.classes, dict) else self.classes

    @property
    def label_values(self) -> tuple[int | str, ...]:
        """Values of the label's column, in the order of the classes."""
        return tuple(self.classes)

    @property
    def outputs(self) -> tuple[str, ...]:
        """A dotted name for each class."""
        return tuple(f"{self.name}.{name}" for name in self.class_names)

    def are_labels(self, values_B: Floats) -> Mask:
        """Mask of the classes' values, where these are numbers."""
        numbers = [value for value in self.label_values if isinstance(value, int)]
        return np.isin(values_B, np.array(numbers, np.float64))

    @classmethod
    def answers(cls, tasks: Sequence[Self], scales: Scales) -> "nn.Module":
        """Logits -> probabilities, which sum to 1 in each task."""
        from model.tasks.answers import ClassProbabilities  # torch, which a schema needs not

        return ClassProbabilities([len(task.outputs) for task in tasks])


def _class_value(key: object) -> int | str:
    # JSON, as a manifest keeps a schema, has no keys but strings.
    if isinstance(key, str) and key.removeprefix("-").isdecimal() and str(int(key)) == key:
        key = int(key)
    if isinstance(key, bool) or not isinstance(key, int | str) or (isinstance(key, int) and abs(key) > _EXACT):
        raise ValueError(f"{key!r} is no value of an integer or string column; write quotes around strings")
    return key
