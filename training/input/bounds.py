"""Bounds of splits, as a training file writes them -> values of a column's type.

A date covers its whole day where the column's values have a time of day: a timestamp, or a text that begins with its
date. Days are those of data.split.timezone; a timestamp that is stored without a zone is in it.
"""

import re
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc

from training.config import Range, Scalar, Selection

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
# The least value of a column that is taken for a time since 1970, by unit, and how many there are in a second.
_EPOCHS = {"nanoseconds": (10**17, 10**9), "microseconds": (10**14, 10**6), "milliseconds": (10**11, 10**3),
           "seconds": (10**8, 1)}  # fmt: skip
_YEARS = (1_900_01_01, 2_100_12_31)


class Span(NamedTuple):
    """Values from `first` to `last`, which is left out where it `is_open`; None: without an end."""

    first: pa.Scalar
    last: pa.Scalar | None
    is_open: bool


def covers_day(value: Scalar, kind: pa.DataType) -> bool:
    """True for a date that stands for all values of its day."""
    is_timed = pa.types.is_timestamp(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return is_timed and isinstance(value, str) and _DATE.fullmatch(value) is not None


def span_of(value: Scalar, kind: pa.DataType, zone: str) -> Span:
    """The values that a literal stands for. Raises ValueError or ArrowException where it is none of the column's."""
    if not covers_day(value, kind):
        exact = literal(value, kind, zone)
        return Span(exact, exact, is_open=False)
    day = date.fromisoformat(str(value))
    after = day + timedelta(days=1) if day < date.max else None
    if pa.types.is_timestamp(kind):
        return Span(literal(f"{day}T00:00", kind, zone), after and literal(f"{after}T00:00", kind, zone), is_open=True)
    return Span(pa.scalar(str(day), kind), after and pa.scalar(str(after), kind), is_open=True)


def days_of(values: pa.ChunkedArray, zone: str) -> pa.ChunkedArray:
    """Days of a column of times, or of texts that begin with their dates, as text; other values as they are."""
    kind = values.type
    if pa.types.is_timestamp(kind):
        if kind.tz is not None:
            values = pc.local_timestamp(values.cast(pa.timestamp(kind.unit, zone)))
        return values.cast(pa.date32()).cast(pa.string())
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if is_text and pc.all(pc.match_substring_regex(values, rf"^{_DATE.pattern}")).as_py():
        return pc.utf8_slice_codeunits(values, 0, 10)
    return values


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
    if _YEARS[0] <= most <= _YEARS[1]:
        return f"; it holds integers: write the day as {texts[0].replace('-', '')}"
    for unit, (least, per_second) in _EPOCHS.items():
        if most >= least:
            start = datetime.fromisoformat(texts[0]).replace(tzinfo=ZoneInfo(zone))
            first, last = (int((start + timedelta(days=days)).timestamp()) * per_second for days in (0, 1))
            return f"; it holds {unit} since 1970, of which {texts[0]} is {first} to {last - 1}"
    return ""


def _has_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind))
