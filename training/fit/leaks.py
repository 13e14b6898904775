"""Leaks that flatter a validation split: training rows that are later, labels among features.

In: the splits' rows as they are read, whole or in parts. Out: warnings that name the split, the column or the feature.
Nothing is said where it is not certain: splits by a column that is no time, and features that a label decides in all
but one row, pass.

Shapes: B rows, V values of a column.
"""

import re
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.features.kinds.columns import Column
from model.schema import FeedSchema
from training.columns import plain
from training.config import SplitName
from training.data.arrow import labels_of, observed_of
from training.data.selection import epoch_unit
from training.tasks import learned

# Rows of either label that a feature must agree with: by chance it does with a few.
LEAST_ROWS = 10
# A first part settles nearly every pair of feature and label.
_FIRST_ROWS = 256
_ROUNDING = 1e-9


class Times:
    """The first and the last value of the split column, by split."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._spans: dict[SplitName, tuple[Any, Any]] = {}

    def add(self, split: SplitName, values: pa.ChunkedArray) -> None:
        """Add rows of a split. Nulls do not count."""
        values = plain(values)
        if pa.types.is_timestamp(values.type):  # Python's times have no nanoseconds
            values = values.cast(pa.timestamp("us", values.type.tz), safe=False)
        try:
            found = pc.min_max(values).as_py()
        except pa.ArrowException:  # of a type without an order
            return
        if found["min"] is not None:
            low, high = self._spans.get(split, (found["min"], found["max"]))
            self._spans[split] = (min(low, found["min"]), max(high, found["max"]))

    def warnings(self) -> list[str]:
        """One for each later split that training rows reach into, none where the column is no time."""
        if "train" not in self._spans or not _are_times([one for span in self._spans.values() for one in span]):
            return []
        last = self._spans["train"][1]
        return [
            f"split train: has rows up to {last}, later than the first of split {split} ({first}; column "
            f"'{self._column}'): an error measured there is smaller than on days to come"
            for split, (first, _) in self._spans.items()
            if split != "train" and last > first
        ]


def _are_times(values: list[Any]) -> bool:
    """True for dates or times, as such, as ISO text, or as integers (yyyymmdd, since 1970)."""
    if all(isinstance(value, date | datetime) for value in values):
        return True
    if all(isinstance(value, str) and re.match(r"\d{4}-\d{2}-\d{2}", value) for value in values):
        return True
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return False
    return all(map(_is_day, values)) or epoch_unit(min(values), max(values)) is not None


def _is_day(value: int) -> bool:
    try:
        return 1900 <= datetime.strptime(f"{value:08d}", "%Y%m%d").year < 2200
    except ValueError:
        return False


class Twins:
    """Features that a label decides in every row of the training split: the label under another name.

    Of classes the feature has a value for each label, of a regression it is the label up to scale and offset. Nulls of
    the feature do not count, nor do lists."""

    def __init__(self, schema: FeedSchema) -> None:
        self._tasks = schema.tasks
        names = [feature.name for feature in schema.features if not feature.is_list]
        self._left: dict[str, dict[str, _Pair]] = {
            task.name: {name: _pair(learned(task).num_classes) for name in names} for task in schema.tasks
        }

    def add(self, table: pa.Table, columns: Mapping[str, Column]) -> None:
        """Add rows of the training split, with their features' columns."""
        rows = table.num_rows
        for task in self._tasks:
            left = self._left[task.name]
            if not left or not rows:
                continue
            observed_B, labels_B = observed_of(task, table), labels_of(task, table)
            for part in (slice(0, _FIRST_ROWS), slice(_FIRST_ROWS, rows)):
                for name in list(left):
                    values_B, is_given_B = _part_of(columns[name], part)
                    is_in_B = is_given_B & observed_B[part]
                    if not left[name].agrees(values_B[is_in_B], labels_B[part][is_in_B]):
                        del left[name]

    def warnings(self) -> list[str]:
        """One for each feature and task."""
        return [
            f"feature {name}: its values are decided by label '{task.label}' of task {task.name} in all "
            f"{pair.rows:,} rows of split train that have both: is it the label under another name?"
            for task in self._tasks
            for name, pair in self._left[task.name].items()
            if pair.is_certain()
        ]


class _Pair:
    rows = 0

    def agrees(self, values_B: NDArray[Any], labels_B: NDArray[np.float64]) -> bool:
        """Add rows. False once they do not go with those before."""
        raise NotImplementedError

    def is_certain(self) -> bool:
        raise NotImplementedError


def _pair(classes: int | None) -> _Pair:
    return _OfRegression() if classes is None else _OfClasses(classes)


class _OfClasses(_Pair):
    def __init__(self, classes: int) -> None:
        self._value_of: dict[int, Any] = {}
        self._rows_of = dict.fromkeys(range(classes), 0)

    def agrees(self, values_B: NDArray[Any], labels_B: NDArray[np.float64]) -> bool:
        self.rows += len(values_B)
        for label in self._rows_of:
            own_B = values_B[labels_B == label]
            self._rows_of[label] += len(own_B)
            if len(own_B) and not (own_B == self._value_of.setdefault(label, own_B[0])).all():
                return False
        return len(set(self._value_of.values())) == len(self._value_of)

    def is_certain(self) -> bool:
        return sum(rows >= LEAST_ROWS for rows in self._rows_of.values()) > 1


class _OfRegression(_Pair):
    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        self._line: tuple[float, float] | None = None

    def agrees(self, values_B: NDArray[Any], labels_B: NDArray[np.float64]) -> bool:
        if values_B.dtype.kind not in "iuf":
            return False
        self.rows += len(values_B)
        if len(values_B) and self._first is None:
            self._first = float(labels_B[0]), float(values_B[0])
        if self._first is not None and self._line is None:
            others = np.flatnonzero(labels_B != self._first[0])
            if len(others):
                label, value = float(labels_B[others[0]]), float(values_B[others[0]])
                slope = (value - self._first[1]) / (label - self._first[0])
                self._line = slope, self._first[1] - slope * self._first[0]
        if self._line is None:
            return self._first is None or bool((values_B == self._first[1]).all())
        slope, offset = self._line
        return slope != 0.0 and np.allclose(
            values_B, slope * labels_B + offset, rtol=_ROUNDING, atol=_ROUNDING * max(1.0, abs(offset))
        )

    def is_certain(self) -> bool:
        return self._line is not None and self.rows >= 2 * LEAST_ROWS


def _part_of(column: Column, part: slice) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Values of some rows, one each, and which of them are given."""
    if column.codes_V is not None:
        codes_B = column.codes_V[part]
        values_B = np.array([*column.values, ""], object)[codes_B]
    else:
        values_B = np.asarray(column.values[part])
    given = np.ones(len(values_B), bool) if column.missing is None else ~column.missing[part]
    return values_B, given
