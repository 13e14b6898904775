"""Calibration: a task's answer -> the mean of its label: a probability's observed rate, or a quantity's mean.

In: answers of the ranker, which already undo negative downsampling in the logit (model.ranker.Answers). Out: the same
array with each mapped task's answers mapped. Of one output the map is an increasing function, so that no ranking by the
task changes. Of classes it is one of all their probabilities, which sum to 1 after it too. Fitted at export, on the
validation split: of probabilities where a flag says so (training/evaluate/calibration.py), of quantities that are
learned on a transformed scale always (training/evaluate/label_means.py). Part of the artifact.

Shapes: N candidates, O outputs, C classes of a task. Probabilities are in [0, 1], quantities >= 0. 0 stays 0, and a
probability of 1 stays 1.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, PrivateAttr, field_validator, model_validator

from model.artifact.artifact import CALIBRATION, Artifact, ArtifactError
from model.schema import FeedSchema
from model.strict_yaml import StrictModel

Array = NDArray[np.float64]
Probability = Annotated[float, Field(gt=0, lt=1)]
Quantity = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Platt(StrictModel):
    """sigmoid(slope x logit(p) + intercept): Platt 1999, on the logit."""

    width: ClassVar[int] = 1

    kind: Literal["platt"]
    slope: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    intercept: FiniteFloat

    def __call__(self, probability_N: Array) -> Array:
        """calibrated_N."""
        with np.errstate(divide="ignore", over="ignore"):  # 0 and 1 have infinite logits, which are answered rightly
            logit_N = np.log(probability_N) - np.log1p(-probability_N)
            calibrated_N: Array = 1 / (1 + np.exp(-(self.slope * logit_N + self.intercept)))
        return calibrated_N


class BiasCorrectedTemperature(StrictModel):
    """softmax(slope x log p + intercepts) over the classes of a task (Alexandari, Kundaje and Shrikumar 2020).

    It is Platt's map where there are two classes. Few numbers are fitted, so that a rare class does not need many
    labels, and probabilities sum to 1 by themselves."""

    kind: Literal["bias_corrected_temperature"]
    slope: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    intercepts: tuple[FiniteFloat, ...]

    @property
    def width(self) -> int:
        """Outputs that are mapped together."""
        return len(self.intercepts)

    def __call__(self, probabilities_NC: Array) -> Array:
        """calibrated_NC."""
        with np.errstate(divide="ignore"):  # a probability of 0 stays 0
            values_NC = self.slope * np.log(probabilities_NC) + np.asarray(self.intercepts)
        powers_NC = np.exp(values_NC - values_NC.max(axis=1, keepdims=True))
        calibrated_NC: Array = powers_NC / powers_NC.sum(axis=1, keepdims=True)
        return calibrated_NC


class _Lines(StrictModel):
    """Points between which a map is straight lines."""

    width: ClassVar[int] = 1

    inputs: tuple[float, ...]
    outputs: tuple[float, ...]

    @field_validator("inputs", "outputs")
    @classmethod
    def _check_increasing(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(after <= before for before, after in pairwise(values)):
            raise ValueError("must be strictly increasing")
        return values

    @model_validator(mode="after")
    def _check_points(self) -> Self:
        if not 0 < len(self.inputs) == len(self.outputs):
            raise ValueError(f"{len(self.inputs)} inputs and {len(self.outputs)} outputs; as many as each other, not 0")
        return self


class Isotonic(_Lines):
    """Straight lines through the points of an isotonic regression, and through (0, 0) and (1, 1). Source: Zadrozny and
    Elkan 2002, here interpolated, so that no two probabilities become one."""

    kind: Literal["isotonic"]
    inputs: tuple[Probability, ...]
    outputs: tuple[Probability, ...]

    def __call__(self, probability_N: Array) -> Array:
        """calibrated_N."""
        return np.interp(probability_N, (0.0, *self.inputs, 1.0), (0.0, *self.outputs, 1.0))


class LabelMean(_Lines):
    """A quantity -> the mean of its label, in the label's unit. Straight lines go from (0, 0) through the points,
    beyond the last point in proportion. Nothing is above `upper`, the task's bound."""

    kind: Literal["label_mean"]
    inputs: tuple[Quantity, ...]
    outputs: tuple[Quantity, ...]
    upper: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    _corners: tuple[Array, Array] = PrivateAttr()

    def model_post_init(self, _: Any) -> None:
        """Keep the points as arrays, with the one where the last line meets the bound: it is level from there on."""
        inputs, outputs = (0.0, *self.inputs), (0.0, *self.outputs)
        if self.outputs[-1] < self.upper:
            inputs, outputs = (*inputs, self.inputs[-1] * (self.upper / self.outputs[-1])), (*outputs, self.upper)
        self._corners = np.array(inputs), np.array(outputs)

    def __call__(self, quantity_N: Array) -> Array:
        """mean_N."""
        mean_N: Array = np.minimum(np.interp(quantity_N, *self._corners), self.upper)
        return mean_N


AnswerMap = Platt | Isotonic | BiasCorrectedTemperature | LabelMean
# Columns of a task among the outputs, and their map.
AnswerMaps = Sequence[tuple[slice, AnswerMap]]


class Calibration(StrictModel):
    """The calibration of a ranker: by task, what its answers are mapped by."""

    tasks: dict[str, Annotated[AnswerMap, Field(discriminator="kind")]]

    def bound(self, schema: FeedSchema) -> AnswerMaps:
        """Each map with its task's columns. Raises ValueError for a map that fits no task of its name."""
        tasks, columns = {task.name: task for task in schema.tasks}, schema.output_slices
        for name, mapping in self.tasks.items():
            task = tasks.get(name)
            if task is None or mapping.kind not in task.calibrated_by or mapping.width != len(task.outputs):
                raise ValueError(f"calibrates '{name}' by {mapping.kind}: this model has no such task that it fits")
        return [(columns[name], mapping) for name, mapping in self.tasks.items()]


def calibrated(answers_NO: NDArray[np.float32], mappings: AnswerMaps) -> NDArray[np.float32]:
    """A copy of answers_NO, the mapped tasks' answers mapped. NaN stays NaN."""
    answers_NO = answers_NO.copy()
    for columns, mapping in mappings:
        answers_NO[:, columns] = mapping(answers_NO[:, columns].astype(np.float64))
    return answers_NO


def own_calibration(artifact: Artifact) -> Calibration:
    """The calibration that a version was exported with, without a task where it has no such file. Raises ArtifactError
    naming the file."""
    if CALIBRATION not in artifact.manifest.files:
        return Calibration(tasks={})
    place = str(artifact.path / CALIBRATION)
    try:
        calibration = Calibration.from_mapping(artifact.read_json(CALIBRATION), place)
        calibration.bound(artifact.manifest.feed)
    except ArtifactError:
        raise
    except ValueError as error:
        raise ArtifactError(str(error) if place in str(error) else f"{place}: {error}") from None
    return calibration
