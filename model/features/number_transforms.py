"""Raw numbers -> float32 inputs: the fitted transforms, each once for all features that have it.

In: float64 columns, `missing` already or still to be filled in. Out: float32, every value within NUMBER_LIMIT.

Shapes: B rows, Q numbers of a block, G of them with the same chain of transforms.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from model.features.fitted import RAW_LIMIT, FittedFeatures, NumberStep
from model.features.kinds.columns import Column
from model.features.kinds.inputs import NumberInput

# Beyond this a float32 network may overflow to infinity. No feature of a feed is that large.
NUMBER_LIMIT = 1e9

Numbers = NDArray[np.float64]


def number_groups(numbers: Sequence[NumberInput], fitted: FittedFeatures) -> list["NumberGroup"]:
    """The numbers of a block by their chain of transforms. Raises ValueError where what was fitted is another."""
    by_transform: dict[tuple[str, ...], list[NumberInput]] = {}
    for number in numbers:
        by_transform.setdefault(number.transform, []).append(number)
    order = [number.name for number in numbers]
    return [NumberGroup(group, order, fitted) for group in by_transform.values()]


class NumberGroup:
    """The numbers of a block with the same chain of transforms."""

    def __init__(self, numbers: list[NumberInput], order: list[str], fitted: FittedFeatures) -> None:
        self._inputs = numbers
        self.positions_G = np.array([order.index(number.name) for number in numbers])
        chains = [_fitted_steps(number, fitted) for number in numbers]
        self._steps = [_Step(steps) for steps in zip(*chains, strict=True)]

    def write(self, numbers_BQ: NDArray[np.float32], columns: Mapping[str, Column]) -> None:
        """Write the group's columns of numbers_BQ."""
        rows = len(numbers_BQ)
        raw: list[Numbers] = []
        for number in self._inputs:
            column = columns.get(number.feature)
            raw.append(np.full(rows, number.missing) if column is None else number.raw(column))
        numbers_BQ[:, self.positions_G] = self.transformed(np.concatenate(raw).reshape(len(raw), rows)).T

    def transformed(self, values_GB: Numbers) -> Numbers:
        """The inputs of raw values, none of which is missing."""
        if self._steps:
            values_GB = _cut(values_GB, RAW_LIMIT)
        for step in self._steps:
            values_GB = step.apply(values_GB)
        return _cut(values_GB, NUMBER_LIMIT)


def _cut(values: Numbers, limit: float) -> Numbers:
    # numpy's clip is a function in Python around these two.
    cut: Numbers = np.minimum(np.maximum(values, -limit), limit)
    return cut


class _Step:
    """The same transform of G features, each with what was fitted for it."""

    def __init__(self, steps: Sequence[NumberStep]) -> None:
        self._steps = steps
        self._mean_G1 = np.array([[step.mean] for step in steps])
        self._scale_G1 = np.array([[step.scale] for step in steps])

    def apply(self, values_GB: Numbers) -> Numbers:
        transform = self._steps[0].transform
        if transform == "standardise":
            standardised_GB: Numbers = (values_GB - self._mean_G1) / self._scale_G1
            return standardised_GB
        if transform == "log1p":
            return self._steps[0].apply(values_GB)
        return np.stack([step.apply(values_B) for step, values_B in zip(self._steps, values_GB, strict=True)])


def _fitted_steps(number: NumberInput, fitted: FittedFeatures) -> tuple[NumberStep, ...]:
    steps = fitted.numbers.get(number.name, ())
    if tuple(step.transform for step in steps) != number.transform:
        raise ValueError(f"feature '{number.name}': its fitted transforms are not the schema's {number.transform}")
    return steps
