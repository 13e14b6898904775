"""Lessons of the training split for the features: vocabularies, number transforms, scales of regression labels.

In: the training split's columns, whole or piece by piece. Out: `FittedFeatures`, which the artifact keeps as JSON and
every encoder reads. What pieces are remembered by, and how exactly, is in id_counts.py and summaries.py.

Shapes: V values of a column.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import compress
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StrictInt, StrictStr

from model.features.block import inputs_of
from model.features.id_counts import MOST_IDS, Arrays, Counts, IntegerCounts, StringCounts
from model.features.kinds.columns import Column, Values
from model.features.kinds.inputs import NumberInput, NumberTransform
from model.features.running_statistics import Largest, Moments, RankSketch
from model.schema import FeedSchema, Table
from model.strict_yaml import StrictModel
from model.tasks.task import UPPER_LIMIT, TargetScale

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
            return np.copysign(np.log1p(np.abs(values)), values)
        if self.transform == "standardise":
            return (values - self.mean) / self.scale
        ranks = np.interp(values, *_ranked_knots(self.knots))
        return ranks * 2.0 - 1.0

    def invert(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The raw values of transformed ones. Of a quantile transform those between its lowest and highest knot."""
        if self.transform == "log1p":
            return np.copysign(np.expm1(np.abs(values)), values)
        if self.transform == "standardise":
            return values * self.scale + self.mean
        knots, ranks = _ranked_knots(self.knots)
        return np.interp((values + 1.0) / 2.0, ranks, knots)


class FittedFeatures(StrictModel):
    """Fitted state of the features: vocabularies by table, number transforms, label scales."""

    vocabularies: dict[str, tuple[StrictInt, ...] | tuple[StrictStr, ...]] = Field(default_factory=dict)
    numbers: dict[str, tuple[NumberStep, ...]] = Field(default_factory=dict)
    targets: dict[str, TargetScale] = Field(default_factory=dict)

    @staticmethod
    def fit(
        schema: FeedSchema, columns: Mapping[str, Column], targets: Mapping[str, NDArray[np.float64]]
    ) -> "FittedFeatures":
        """Fits on the training split's columns and on the transformed labels of its regression tasks."""
        fitting = FittingPass(schema)
        fitting.update(columns, targets)
        return fitting.finish()


class FittingPass:
    """Fits a feed's features on a training split given in pieces, in memory that does not grow with the rows.

    `counts` has how often the ids of each table occur: of those with a fitted vocabulary, or with `every_table` of all,
    `most_ids` of a table at most. `rows` is what was given."""

    def __init__(self, schema: FeedSchema, *, every_table: bool = False, most_ids: int = MOST_IDS) -> None:
        self._tables = [table for table in schema.tables if every_table or table.vocabulary == "fitted"]
        self._numbers = inputs_of(schema.features).numbers
        self._most_ids = most_ids
        self.rows = 0
        self.counts = {table.name: _new_counts(table, most_ids) for table in self._tables}
        fitted = {number.name: [t for t in number.transform if t != "log1p"] for number in self._numbers}
        self._moments = {name: Moments() for name, steps in fitted.items() if steps[:1] == ["standardise"]}
        # What comes after a fitted transform is computed from the values by rank: every transform keeps their order.
        self._ranks = {name: RankSketch() for name, steps in fitted.items() if steps[:1] == ["quantile"] or steps[1:]}
        self._scaled = {task.name: task for task in schema.tasks if task.scaling is not None}
        self._targets = {name: Moments() for name in self._scaled}
        # In the label's own unit.
        self._largest = {name: Largest() for name in self._scaled}

    def update(self, columns: Mapping[str, Column], targets: Mapping[str, NDArray[np.float64]]) -> None:
        """Add a piece's columns, and the transformed labels of tasks with a scale where they count."""
        self.rows += next(iter(columns.values())).rows
        _count(self.counts, self._tables, columns)
        for number in self._numbers:
            values = number.raw(columns[number.feature]).clip(-RAW_LIMIT, RAW_LIMIT)
            if (ranks := self._ranks.get(number.name)) is not None:
                ranks.add(values)
            if (moments := self._moments.get(number.name)) is not None:
                moments.add(_before_fitted(number, values))
        for task, scale in self._targets.items():
            scale.add(targets[task])
            self._largest[task].add(self._scaled[task].inverse(targets[task]))

    def merge(self, other: Self) -> None:
        """Add what a pass over other rows of the same feed has counted."""
        self.rows += other.rows
        for name, counts in self.counts.items():
            counts.merge(other.counts[name])  # type: ignore[arg-type]
        for name, ranks in self._ranks.items():
            ranks.merge(other._ranks[name])
        for mine, others in ((self._moments, other._moments), (self._targets, other._targets)):
            for name, moments in mine.items():
                moments.merge(others[name])
        for name, largest in self._largest.items():
            largest.merge(other._largest[name])

    def finish(self) -> FittedFeatures:
        """The fitted state. Raises ValueError where there is nothing to fit on."""
        vocabularies = {table.name: self._vocabulary(table) for table in self._tables if table.vocabulary == "fitted"}
        if not self.rows:
            raise ValueError("the training split has no row")
        return FittedFeatures(
            vocabularies=vocabularies,
            numbers={number.name: self._steps(number) for number in self._numbers},
            targets={name: _target_scale(moments, self._largest[name]) for name, moments in self._targets.items()},
        )

    @property
    def rank_errors(self) -> dict[str, float]:
        """Share of the rows that a rank may be off, by feature whose ranks are fitted. 0: all are exact."""
        return {name: ranks.rank_error / max(self.rows, 1) for name, ranks in self._ranks.items()}

    def arrays(self) -> Arrays:
        """All that was taken, for a file."""
        return {
            "rows": np.array([self.rows]),
            **{f"{group}/{name}/{key}": array
               for group, summaries in self._summaries().items()
               for name, summary in summaries.items()
               for key, array in summary.arrays().items()},
        }  # fmt: skip

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Become the pass that `arrays` was made of. Raises KeyError where that was another feed's."""
        [self.rows] = arrays["rows"].tolist()
        for group, summaries in self._summaries().items():
            for name, summary in summaries.items():
                start = f"{group}/{name}/"
                own = {key.removeprefix(start): array for key, array in arrays.items() if key.startswith(start)}
                summary.restore(own)

    def _summaries(self) -> Mapping[str, Mapping[str, Counts | Moments | RankSketch | Largest]]:
        return {
            "counts": self.counts,
            "moments": self._moments,
            "ranks": self._ranks,
            "targets": self._targets,
            "largest": self._largest,
        }

    def _vocabulary(self, table: Table) -> tuple[int, ...] | tuple[str, ...]:
        ids, counts = self.counts[table.name].entries()
        kept = np.flatnonzero(counts >= table.min_count)
        if not len(kept):
            raise ValueError(f"table '{table.name}': no value is seen {table.min_count} times in the training split")
        return tuple(ids[place] for place in kept) if isinstance(ids, list) else tuple(ids[kept].tolist())

    def _steps(self, number: NumberInput) -> tuple[NumberStep, ...]:
        steps: list[NumberStep] = []
        moments = self._moments.get(number.name)
        values, weights = self._ranks.get(number.name, RankSketch()).weighted()
        for transform in number.transform:
            step = NumberStep(transform=transform)
            if transform == "quantile":
                step = NumberStep(transform=transform, knots=_knots(values, weights))
            elif transform == "standardise" and moments is not None:
                step = _standardise(moments.mean, moments.deviation)
                moments = None  # of the first such step alone
            elif transform == "standardise":
                mean = float(np.average(values, weights=weights))
                step = _standardise(mean, float(np.sqrt(np.average(np.square(values - mean), weights=weights))))
            values = step.apply(values)
            steps.append(step)
        return tuple(steps)


def count_ids(tables: Sequence[Table], columns: Mapping[str, Column]) -> dict[str, Counts]:
    """Counts of the ids of each table in columns."""
    counts = {table.name: _new_counts(table) for table in tables}
    _count(counts, tables, columns)
    return counts


def _count(counts: Mapping[str, Counts], tables: Sequence[Table], columns: Mapping[str, Column]) -> None:
    for table in tables:
        for name in table.features:
            column, of_table = columns[name], counts[table.name]
            if column.codes_V is not None and isinstance(column.values, list):
                assert isinstance(of_table, StringCounts)
                is_null = column.missing
                of_table.add_coded(column.values, column.codes_V if is_null is None else column.codes_V[~is_null])
            else:
                of_table.add(_known_ids(column))  # type: ignore[arg-type]


def _new_counts(table: Table, most_ids: int = MOST_IDS) -> Counts:
    # A vocabulary needs the commonest ids. Of any other table a sample says more.
    is_sampled = table.vocabulary != "fitted"
    kind = StringCounts if table.dtype == "string" else IntegerCounts
    return kind(most_ids, sampled=is_sampled)


def _known_ids(column: Column) -> Values:
    """A column's ids without nulls."""
    if column.missing is None:
        return column.values
    if isinstance(column.values, list):
        return list(compress(column.values, ~column.missing))
    return column.values[~column.missing]


def _before_fitted(number: NumberInput, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A feature's raw values by the transforms before its first fitted one."""
    for transform in number.transform:
        if transform != "log1p":
            break
        values = NumberStep(transform=transform).apply(values)
    return values


def _knots(values: NDArray[np.float64], weights: NDArray[np.int64]) -> tuple[float, ...]:
    """The values at even ranks, of ascending `values` that stand for `weights` values each."""
    ends = np.cumsum(weights)
    return tuple(values[np.searchsorted(ends, ends[-1] * np.linspace(0, 1, QUANTILE_KNOTS))].tolist())


def _standardise(mean: float, deviation: float) -> NumberStep:
    return NumberStep(transform="standardise", mean=mean, scale=_divisor(deviation))


def _divisor(deviation: float) -> float:
    # A constant column has no spread to divide by: it becomes 0 in training and stays finite in serving.
    return deviation if deviation > 1e-12 else 1.0


@lru_cache(maxsize=4096)
def _ranked_knots(knots: tuple[float, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distinct knots with their ranks (0..1): a value that fills many knots gets their middle, not one end."""
    distinct, first = np.unique(np.asarray(knots), return_index=True)
    end = np.append(first[1:], len(knots)) - 1
    return distinct, (first + end) / (2.0 * max(len(knots) - 1, 1))


def _target_scale(moments: Moments, largest: Largest) -> TargetScale:
    if not moments.count:
        raise ValueError("a regression task has no labelled row in the training split")
    upper = float(np.float32(min(largest.upper_bound(), UPPER_LIMIT)))
    return TargetScale(mean=moments.mean, scale=_divisor(moments.deviation), upper=upper)
