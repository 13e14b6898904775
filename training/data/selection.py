"""Rows of a log by split: by a column's values, or by what a row group's statistics say of them.

In: the training file's data.split. Out: masks of rows. Every fault is a ValueError that names the place.

Bounds are written in a training file and compared in a column's type. A date covers its whole day where the column's
values have a time of day: a timestamp, or a text that begins with its date. Days are those of data.split.timezone. A
timestamp that is stored without a zone is in it.
"""

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from itertools import combinations
from typing import Any, NamedTuple, get_args
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc

from training.columns import plain
from training.config import SplitName
from training.data.files import LogFile, partition_type
from training.data.moving.halves import in_second_half
from training.data.usual_types import usual
from training.split_config import Range, ResolvedWindows, Scalar, Selection, SplitConfig
from training.wording import counted

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
# Units of integers since 1970: Arrow's name, and how many make a second.
_EPOCHS = {"nanoseconds": ("ns", 10**9), "microseconds": ("us", 10**6), "milliseconds": ("ms", 10**3),
           "seconds": ("s", 1)}  # fmt: skip
# Seconds from 1973 to 2099. The same span in another unit has none of these integers, nor has yyyymmdd.
_EPOCH_SECONDS = (10**8, 41 * 10**8)
YEARS = (1_900_01_01, 2_100_12_31)


class Span(NamedTuple):
    """Values from `first` to `last`, which is left out where it `is_open`. None is without an end."""

    first: pa.Scalar
    last: pa.Scalar | None
    is_open: bool


def covers_day(value: Scalar, kind: pa.DataType) -> bool:
    """True for a date that means all values of its day."""
    is_timed = pa.types.is_timestamp(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return is_timed and isinstance(value, str) and _DATE.fullmatch(value) is not None


def span_of(value: Scalar, kind: pa.DataType, zone: str) -> Span:
    """The values that a literal means. Raises ValueError or ArrowException where it is none of the column's."""
    if not covers_day(value, kind):
        exact = literal(value, kind, zone)
        return Span(exact, exact, is_open=False)
    day = date.fromisoformat(str(value))
    after = day + timedelta(days=1) if day < date.max else None
    if pa.types.is_timestamp(kind):
        return Span(literal(f"{day}T00:00", kind, zone), after and literal(f"{after}T00:00", kind, zone), is_open=True)
    return Span(pa.scalar(str(day), kind), after and pa.scalar(str(after), kind), is_open=True)


def days_of(values: pa.ChunkedArray, zone: str) -> tuple[pa.ChunkedArray, str]:
    """Days of a column's times, and in words which times those are. Texts count that begin with a date, and integers
    that all are times since 1970 (`epoch_unit`). Other values are given as they are."""
    kind = values.type
    if pa.types.is_integer(kind):
        unit = epoch_unit(*pc.min_max(values).as_py().values())
        if unit is None:
            return values, "its own values"
        since_1970 = values.cast(pa.int64()).cast(pa.timestamp(_EPOCHS[unit][0], "UTC"))
        return days_of(since_1970, zone)[0], f"days ({zone}) of integers read as {unit} since 1970"
    if pa.types.is_timestamp(kind):
        if kind.tz is not None:
            values = pc.local_timestamp(values.cast(pa.timestamp(kind.unit, zone)))
        return values.cast(pa.date32()), f"days ({zone})"
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if is_text and pc.all(pc.match_substring_regex(values, rf"^{_DATE.pattern}")).as_py():
        return pc.utf8_slice_codeunits(values, 0, 10), "days that its texts begin with"
    return values, "its own values"


def epoch_unit(least: int, most: int) -> str | None:
    """Unit in which integers from `least` to `most` are all times since 1970 (1973 to 2099), None where there is none.
    No integer is such a time in two units."""
    first, last = _EPOCH_SECONDS
    return next((unit for unit, (_, per) in _EPOCHS.items() if first * per <= least and most < last * per), None)


def literal(value: Scalar, kind: pa.DataType, zone: str) -> pa.Scalar:
    """A literal as a column's type: dates and times are written as text. Raises ValueError or ArrowException."""
    if pa.types.is_timestamp(kind):
        if not isinstance(value, str):
            raise ValueError("a number is no time")
        time = datetime.fromisoformat(value)
        if kind.tz is not None:
            time = (time if time.tzinfo else time.replace(tzinfo=ZoneInfo(zone))).astimezone(UTC)
        elif time.tzinfo is not None:
            time = time.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
        return pa.scalar(time).cast(kind)
    return pa.scalar(value).cast(kind) if pa.types.is_temporal(kind) else pa.scalar(value)


def remedy(column: pa.ChunkedArray, selection: Selection, zone: str) -> str:
    """Literal to write in place of one that a column does not compare with."""
    if pa.types.is_temporal(column.type):
        return "; write a day as 2024-01-31" + (", a time as 2024-01-31T18:00" if _has_time(column.type) else "")
    values = [selection.min, selection.max] if isinstance(selection, Range) else selection
    texts = [value for value in (values if isinstance(values, list) else [values]) if isinstance(value, str)]
    if not pa.types.is_integer(column.type) or not texts or not _DATE.fullmatch(texts[0]):
        return ""
    most = pc.max(column).as_py()
    if most is None:
        return ""
    if YEARS[0] <= most <= YEARS[1]:
        return f"; it holds integers: write the day as {texts[0].replace('-', '')}"
    unit = epoch_unit(most, most)
    if unit is None:
        return ""
    start = datetime.fromisoformat(texts[0]).replace(tzinfo=ZoneInfo(zone))
    first, last = (int((start + timedelta(days=days)).timestamp()) * _EPOCHS[unit][1] for days in (0, 1))
    return f"; it holds {unit} since 1970, of which {texts[0]} is {first} to {last - 1}"


def _has_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind))


class Selector:
    """The splits of a training file. `users` is the column whose users are halved, where the windows say so."""

    def __init__(self, config: SplitConfig, users: str | None = None) -> None:
        self.column = config.column
        is_halved = isinstance(config, ResolvedWindows) and config.windows.halve_validation
        self._halved = users if is_halved else None
        # What counts need of a row.
        self.columns = [self.column] if self._halved is None else list(dict.fromkeys((self.column, self._halved)))
        self._zone = config.timezone
        self.selections: dict[SplitName, Selection] = {
            split: selection for split in get_args(SplitName) if (selection := getattr(config, split)) is not None
        }
        self._left_out = config.left_out if isinstance(config, ResolvedWindows) else ()

    def require(self, split: SplitName) -> None:
        """Raise ValueError where the training file does not give a split."""
        if split not in self.selections:
            raise ValueError(f"data.split.{split} is not given in the training file")

    def no_row(self, folder: object, split: SplitName) -> ValueError:
        """Error for a split without rows."""
        left_out = f", but for {counted(len(self._left_out), 'day')} left out (exclude)" if self._left_out else ""
        return ValueError(
            f"{folder}: no row is in split {split}: column '{self.column}' never matches {self.selections[split]}"
            f"{left_out}"
        )

    def is_outside(self, file: LogFile, place: str) -> bool:
        """True for a file of a partition that no split takes a row of."""
        if self.column not in file.partition:
            return False
        value = file.partition[self.column]
        decided = None if value is None else self.by_bounds(value, value, partition_type(value), place)
        return value is None or (decided is not None and not any(decided.values()))

    def of_rows(self, table: pa.Table, place: str) -> dict[SplitName, pa.ChunkedArray]:
        """Masks of the rows in each split, of a table that has `columns`. Raises ValueError as `masks` does."""
        masks = self.masks(table.column(self.column), place)
        if self._halved is not None:
            is_second = in_second_half(table.column(self._halved))
            validation = masks["validation"]
            masks["validation"] = pc.and_(validation, pc.invert(is_second))
            masks["test"] = pc.and_(validation, is_second)
        return masks

    def masks(self, values: pa.ChunkedArray, place: str) -> dict[SplitName, pa.ChunkedArray]:
        """Masks of the rows in each split, from the split column's values. Raises ValueError for a type that does not
        compare and for a row in two splits. `place` (a file, or a row group of one) opens the message."""
        values, _ = usual(plain(values))  # a value outside every usual type is in no split
        masks = {
            split: _selected(values, selection, self._zone, place, self.column)
            for split, selection in self.selections.items()
            if self._halved is None or split != "test"
        }
        _refuse_overlap(masks, place, self.column)
        for selection in self._left_out:
            is_kept = pc.invert(_selected(values, selection, self._zone, place, self.column))
            masks = {split: pc.and_(mask, is_kept) for split, mask in masks.items()}
        return masks

    def by_bounds(self, low: Any, high: Any, kind: pa.DataType, place: str) -> dict[SplitName, bool] | None:
        """Decision by split from the least and the greatest value of a column without nulls: True for all rows of a
        part, False for none. None where that does not decide it for every split."""
        bounds, _ = usual(pa.chunked_array([pa.array([low, high], kind)]))
        try:
            return self._decided(bounds, place, is_one=low == high)
        except ValueError:  # `masks` separates values that compare (8 and '8') from those that do not
            return None

    def _decided(self, bounds: pa.ChunkedArray, place: str, *, is_one: bool) -> dict[SplitName, bool] | None:
        decided: dict[SplitName, bool] = {}
        for selection in self._left_out:
            if pc.all(_selected(bounds, selection, self._zone, place, self.column)).as_py():
                return dict.fromkeys(self.selections, False)
            if self._may_overlap(bounds, selection, place):
                return None
        for split, selection in self.selections.items():
            is_convex = not isinstance(selection, list) or is_one
            if is_convex and pc.all(_selected(bounds, selection, self._zone, place, self.column)).as_py():
                decided[split] = True
            elif not self._may_overlap(bounds, selection, place):
                decided[split] = False
            else:
                return None
        # Which of the rows are in which half, their users say.
        return None if self._halved is not None and decided["validation"] else decided

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
