"""Which rows of a log are in which split: by a column's values, or by what a row group's statistics say of them.

In: the training file's data.split. Out: masks of rows. Every fault is a ValueError that names the place.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc

from training.config import Range, Scalar, Selection, SplitConfig, SplitName
from training.input.arrow_columns import plain
from training.input.bounds import covers_day, literal, remedy, span_of
from training.input.usual_types import usual
from training.wording import counted


class Selector:
    """The splits of a training file."""

    def __init__(self, config: SplitConfig) -> None:
        self.column = config.column
        self._zone = config.timezone
        self.selections: dict[SplitName, Selection] = {
            split: selection for split in get_args(SplitName) if (selection := getattr(config, split)) is not None
        }

    def require(self, split: SplitName) -> None:
        """Raises ValueError where the training file does not give a split."""
        if split not in self.selections:
            raise ValueError(f"data.split.{split} is not given in the training file")

    def no_row(self, folder: object, split: SplitName) -> ValueError:
        """What is said of a split without rows."""
        return ValueError(
            f"{folder}: no row is in split {split}: column '{self.column}' never matches {self.selections[split]}"
        )

    def masks(self, values: pa.ChunkedArray, place: str) -> dict[SplitName, pa.ChunkedArray]:
        """Which rows are in which split, from the split column's values. Raises ValueError for a type that does not
        compare and for a row in two splits; `place` (a file, or a row group of one) opens the message."""
        values, _ = usual(plain(values))  # a value that no usual type holds is in no split
        masks = {
            split: _selected(values, selection, self._zone, place, self.column)
            for split, selection in self.selections.items()
        }
        _refuse_overlap(masks, place, self.column)
        return masks

    def by_bounds(self, low: Any, high: Any, kind: pa.DataType, place: str) -> dict[SplitName, bool] | None:
        """Whether all rows of a part are in a split (True) or none is (False), from the least and the greatest value
        of a column without nulls; None where that does not decide it for every split."""
        bounds, _ = usual(pa.chunked_array([pa.array([low, high], kind)]))
        try:
            return self._decided(bounds, place, is_one=low == high)
        except ValueError:  # `masks` tells values that compare (8 and '8') from those that do not
            return None

    def _decided(self, bounds: pa.ChunkedArray, place: str, *, is_one: bool) -> dict[SplitName, bool] | None:
        decided: dict[SplitName, bool] = {}
        for split, selection in self.selections.items():
            is_convex = not isinstance(selection, list) or is_one
            if is_convex and pc.all(_selected(bounds, selection, self._zone, place, self.column)).as_py():
                decided[split] = True
            elif not self._may_overlap(bounds, selection, place):
                decided[split] = False
            else:
                return None
        return decided

    def _may_overlap(self, bounds: pa.ChunkedArray, selection: Selection, place: str) -> bool:
        if isinstance(selection, Range):
            below, above = (
                _selected(bounds, side, self._zone, place, self.column)
                for side in (Range(max=selection.max), Range(min=selection.min))
            )
            return bool(below[0].as_py() and above[1].as_py())
        values = selection if isinstance(selection, list) else [selection]
        return any(self._may_overlap(bounds, Range(min=value, max=value), place) for value in values)


def _selected(column: pa.ChunkedArray, selection: Selection, zone: str, place: str, name: str) -> pa.ChunkedArray:
    try:
        if isinstance(selection, Range):
            return pc.fill_null(_in_range(column, selection, zone), False)
        values = selection if isinstance(selection, list) else [selection]
        days = [value for value in values if covers_day(value, column.type)]
        others = [value for value in values if not covers_day(value, column.type)]
        keep = pc.is_in(column, value_set=_value_set(others, column.type, zone))
        for day in days:
            keep = pc.or_(keep, _in_range(column, Range(min=day, max=day), zone))
        return pc.fill_null(keep, False)
    except (pa.ArrowException, OverflowError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{place}: split column '{name}' of type {column.type} does not compare with {selection} ({reason})"
            f"{remedy(column, selection, zone)}"
        ) from None


def _in_range(column: pa.ChunkedArray, selection: Range, zone: str) -> pa.ChunkedArray:
    keep = pc.is_valid(column)
    if selection.min is not None:
        keep = pc.and_(keep, pc.greater_equal(column, span_of(selection.min, column.type, zone).first))
    if selection.max is not None:
        span = span_of(selection.max, column.type, zone)
        if span.last is not None:
            keep = pc.and_(keep, (pc.less if span.is_open else pc.less_equal)(column, span.last))
    return keep


def _value_set(values: list[Scalar], kind: pa.DataType, zone: str) -> pa.Array:
    if pa.types.is_timestamp(kind):
        return pa.array([literal(value, kind, zone).as_py() for value in values], kind)
    return pa.array(values).cast(kind)


def _refuse_overlap(masks: Mapping[SplitName, pa.ChunkedArray], place: str, column: str) -> None:
    for one, other in combinations(masks, 2):
        both = pc.and_(masks[one], masks[other])
        shared = pc.sum(both).as_py() or 0
        if shared:
            raise ValueError(
                f"{place}: column '{column}': {counted(shared, 'row')} in split {one} and in split {other} (first: row "
                f"{pc.index(both, True).as_py()}); the splits of a row must not overlap"
            )
