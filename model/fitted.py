"""What the training split teaches the features: vocabularies, number transforms, scales of regression labels.

In: the training split's columns. Out: `FittedFeatures`, which the artifact keeps as JSON and every encoder reads.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StrictInt, StrictStr

from model.columns import Column
from model.schema import FeedSchema, NumberFeature, NumberTransform, RegressionTask, Table
from model.strict_yaml import StrictModel

# Raw values are cut here, so that no transform overflows float64.
RAW_LIMIT = 1e100
QUANTILE_KNOTS = 101


class NumberStep(StrictModel):
    """One fitted transform: `standardise` keeps mean and scale, `quantile` its knots (raw values at even ranks)."""

    transform: NumberTransform
    mean: float = 0.0
    scale: float = 1.0
    knots: tuple[float, ...] = ()

    def apply(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Transforms raw values, any shape."""
        if self.transform == "log1p":
            return np.sign(values) * np.log1p(np.abs(values))
        if self.transform == "standardise":
            return (values - self.mean) / self.scale
        ranks = np.interp(values, *_ranked_knots(self.knots))
        return ranks * 2.0 - 1.0


class TargetScale(StrictModel):
    """Mean and scale of a regression label after its transform, on the training split."""

    mean: float
    scale: float


class FittedFeatures(StrictModel):
    """What the training split taught the features: vocabularies by table, number transforms, label scales."""

    vocabularies: dict[str, tuple[StrictInt, ...] | tuple[StrictStr, ...]] = Field(default_factory=dict)
    numbers: dict[str, tuple[NumberStep, ...]] = Field(default_factory=dict)
    targets: dict[str, TargetScale] = Field(default_factory=dict)

    @classmethod
    def fit(cls, schema: FeedSchema, columns: Mapping[str, Column], targets: Mapping[str, NDArray[np.float64]]) -> Self:
        """Fits on the training split's columns and on the transformed labels of its regression tasks."""
        return cls(
            vocabularies={
                table.name: _fit_vocabulary(table, columns) for table in schema.tables if table.vocabulary == "fitted"
            },
            numbers={
                feature.name: _fit_number(feature, columns[feature.name])
                for feature in schema.features
                if isinstance(feature, NumberFeature)
            },
            targets={
                task.name: _fit_target(targets[task.name]) for task in schema.tasks if isinstance(task, RegressionTask)
            },
        )


def raw_numbers(column: Column, missing_value: float) -> NDArray[np.float64]:
    """A number column's raw values with `missing_value` where there are none, cut at RAW_LIMIT."""
    values = np.asarray(column.values, np.float64)
    if column.missing is not None:
        values = np.where(column.missing, missing_value, values)
    return values.clip(-RAW_LIMIT, RAW_LIMIT)


def _fit_vocabulary(table: Table, columns: Mapping[str, Column]) -> tuple[int, ...] | tuple[str, ...]:
    counts: dict[int | str, int] = {}
    for name in table.features:
        column = columns[name]
        kept = np.asarray(column.values, dtype=object if isinstance(column.values, list) else None)
        if column.missing is not None:
            kept = kept[~column.missing]
        for value, count in zip(*(part.tolist() for part in np.unique(kept, return_counts=True)), strict=True):
            counts[value] = counts.get(value, 0) + count
    entries = sorted(value for value, count in counts.items() if count >= table.min_count)
    if not entries:
        raise ValueError(f"table '{table.name}': no value is seen {table.min_count} times in the training split")
    return tuple(entries)  # type: ignore[return-value]


def _fit_number(feature: NumberFeature, column: Column) -> tuple[NumberStep, ...]:
    values = raw_numbers(column, feature.missing)
    steps = []
    for transform in feature.transform:
        step = _fit_step(transform, values)
        values = step.apply(values)
        steps.append(step)
    return tuple(steps)


def _fit_step(transform: NumberTransform, values: NDArray[np.float64]) -> NumberStep:
    if transform == "standardise":
        scale = float(values.std())
        # A constant column has no spread to divide by: it becomes 0 in training and stays finite in serving.
        return NumberStep(transform=transform, mean=float(values.mean()), scale=scale if scale > 1e-12 else 1.0)
    if transform == "quantile":
        knots = np.quantile(values, np.linspace(0, 1, QUANTILE_KNOTS), method="inverted_cdf")
        return NumberStep(transform=transform, knots=tuple(knots.tolist()))
    return NumberStep(transform=transform)


@lru_cache(maxsize=4096)
def _ranked_knots(knots: tuple[float, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distinct knots with their ranks (0..1): a value that fills many knots gets their middle, not one end."""
    distinct, first = np.unique(np.asarray(knots), return_index=True)
    end = np.append(first[1:], len(knots)) - 1
    return distinct, (first + end) / (2.0 * max(len(knots) - 1, 1))


def _fit_target(values: NDArray[np.float64]) -> TargetScale:
    if not len(values):
        raise ValueError("a regression task has no labelled row in the training split")
    scale = float(values.std())
    return TargetScale(mean=float(values.mean()), scale=scale if scale > 1e-12 else 1.0)


TaskTransform = Literal["none", "log1p"]


def transform_target(values: NDArray[np.float64], transform: TaskTransform) -> NDArray[np.float64]:
    """A regression label (>= 0, its own unit) on the scale where it is learned, before standardising."""
    return np.log1p(values) if transform == "log1p" else values
