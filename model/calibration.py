"""Calibration: a binary task's probability -> the rate at which its label is observed.

In: answers of the ranker, which already undo negative downsampling in the logit (model.ranker.Answers). Out: the same
array with each calibrated task's probabilities mapped by a strictly increasing function, so that no ranking by one task
changes. Fitted at export, on the validation split (training/calibration.py); part of the artifact.

Shapes: N candidates, T tasks. Probabilities are in [0, 1]; 0 and 1 stay what they are.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, field_validator, model_validator

from model.schema import BinaryTask, FeedSchema
from model.strict_yaml import StrictModel

Array = NDArray[np.float64]
Probability = Annotated[float, Field(gt=0, lt=1)]


class Platt(StrictModel):
    """sigmoid(slope x logit(p) + intercept); Platt 1999, on the logit."""

    kind: Literal["platt"]
    slope: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    intercept: FiniteFloat

    def __call__(self, probability_N: Array) -> Array:
        """calibrated_N."""
        with np.errstate(divide="ignore", over="ignore"):  # 0 and 1 have infinite logits, which are answered rightly
            logit_N = np.log(probability_N) - np.log1p(-probability_N)
            calibrated_N: Array = 1 / (1 + np.exp(-(self.slope * logit_N + self.intercept)))
        return calibrated_N


class Isotonic(StrictModel):
    """Straight lines through the points of an isotonic regression, and through (0, 0) and (1, 1) (Zadrozny and Elkan
    2002; interpolated, so that no two probabilities become one)."""

    kind: Literal["isotonic"]
    inputs: tuple[Probability, ...]
    outputs: tuple[Probability, ...]

    @field_validator("inputs", "outputs")
    @classmethod
    def _check_increasing(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(after <= before for before, after in pairwise(values)):
            raise ValueError("must be strictly increasing")
        return values

    @model_validator(mode="after")
    def _check_points(self) -> "Isotonic":
        if not 0 < len(self.inputs) == len(self.outputs):
            raise ValueError(f"{len(self.inputs)} inputs and {len(self.outputs)} outputs; as many as each other, not 0")
        return self

    def __call__(self, probability_N: Array) -> Array:
        """calibrated_N."""
        return np.interp(probability_N, (0.0, *self.inputs, 1.0), (0.0, *self.outputs, 1.0))


class Calibration(StrictModel):
    """The calibration of a ranker: by binary task, what its probabilities are mapped by."""

    tasks: dict[str, Annotated[Platt | Isotonic, Field(discriminator="kind")]]

    def bound(self, schema: FeedSchema) -> Mapping[int, Platt | Isotonic]:
        """By a task's position, its mapping. Raises ValueError for one that is no binary task of the schema."""
        positions = {task.name: place for place, task in enumerate(schema.tasks) if isinstance(task, BinaryTask)}
        for task in self.tasks:
            if task not in positions:
                raise ValueError(f"calibrates '{task}', which is no binary task of this model")
        return {positions[task]: mapping for task, mapping in self.tasks.items()}


def calibrated(answers_NT: NDArray[np.float32], mappings: Mapping[int, Platt | Isotonic]) -> NDArray[np.float32]:
    """A copy of answers_NT, the mapped tasks' probabilities calibrated; NaN stays NaN."""
    answers_NT = answers_NT.copy()
    for position, mapping in mappings.items():
        answers_NT[:, position] = mapping(answers_NT[:, position].astype(np.float64))
    return answers_NT
