"""Events of the event log, or of any Parquet or JSON lines with its columns -> Arrow columns that a join computes with.

In: a file. Out: tables of `EVENTS`, at most some megabytes of the file each. Times are microseconds since 1970 in UTC.
Without `received` the time of an event is its receipt, without `time` the receipt is its time. What is no event is
counted as a bad line, with its file and number (of a Parquet file the row's, from 0).

Shapes: B rows.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from training.columns import plain
from training.data.retries import first_line
from training.join.columns import times
from training.join.faults import BadLines
from training.join.plan import HOUR, OLDEST, Plan, micros
from training.join.sources import Source, SourceFile, blocks

# `_given` is the time as it was sent, which is part of an event's identity. `_time` is clipped by the receipt. `_hour`
# is that of `_time` + skew: the last in which the event's impression can lie. `_joined` is the last hour that had been
# joined when the event was read. `_is_wrong` is true of a value that no label of its task may have.
EVENTS = pa.schema(
    [
        ("_e", pa.int64()),
        ("_hour", pa.int64()),
        ("_joined", pa.int64()),
        ("_received", pa.int64()),
        ("_time", pa.int64()),
        ("_given", pa.int64()),
        ("_request_id", pa.string()),
        ("_candidate_id", pa.string()),
        ("_type", pa.string()),
        ("_event_id", pa.string()),
        ("_place", pa.int64()),
        ("_value", pa.float64()),
        ("_amount", pa.decimal128(38, 9)),
        ("_is_wrong", pa.bool_()),
    ]
)
_NAMES = ("request_id", "type", "id", "received", "model", "position", "time", "value", "event_id")
_NEEDED = ("request_id", "type", "id")
_BATCH_ROWS = 65_536
# Beyond it a sum of values would not fit its decimals.
_MOST_VALUE = 1e18

Mask = NDArray[np.bool_]


class _Line(msgspec.Struct):
    request_id: str
    type: str
    id: str
    received: str | None = None
    model: str | None = None
    position: int | None = None
    time: str | None = None
    value: float | None = None
    event_id: str | None = None


_decoder = msgspec.json.Decoder(_Line)


class EventReader:
    """Reader of the events of a model. `other_models` counts those of others."""

    def __init__(self, plan: Plan, model: str, bad: BadLines) -> None:
        self._plan = plan
        self._bad = bad
        self._model = model
        self._adding = pa.array(sorted(plan.file.adding_types), pa.string())
        self.other_models = 0
        self._rules = _value_rules(plan)

    def tables(self, source: Source, file: SourceFile) -> Iterator[pa.Table]:
        """The events of a file, without `_e` and `_joined`. Raises ValueError for a file that cannot be read at all,
        GoneError for one that was removed."""
        with source.opened(file) as (now, opened):
            place = source.shown(now)
            if now.is_parquet:
                yield from self._of_parquet(opened, place)
                return
            for block in blocks(opened):
                for line in block.too_long:
                    self._bad.add(place, line, "a line too long to be an event")
                yield self._of_lines(block.lines, block.first, place)

    def _of_lines(self, lines: list[bytes], first: int, place: str) -> pa.Table:
        numbers: Sequence[int] = range(first, first + len(lines))
        try:
            events = _decoder.decode_lines(b"\n".join(lines))
            if len(events) != len(lines):  # blank lines are none
                numbers = [number for number, line in zip(numbers, lines, strict=True) if line.strip()]
        except (msgspec.MsgspecError, RecursionError):
            events, numbers = self._one_by_one(lines, first, place)
        columns = {
            "request_id": pa.array([event.request_id for event in events], pa.string()),
            "type": pa.array([event.type for event in events], pa.string()),
            "id": pa.array([event.id for event in events], pa.string()),
            "received": pa.array([event.received for event in events], pa.string()),
            "model": pa.array([event.model for event in events], pa.string()),
            "time": pa.array([event.time for event in events], pa.string()),
            "value": pa.array([event.value for event in events], pa.float64()),
            "event_id": pa.array([event.event_id for event in events], pa.string()),
            "position": _integers([event.position for event in events]),
        }
        return self._checked(columns, numbers, place)

    def _one_by_one(self, lines: list[bytes], first: int, place: str) -> tuple[list[_Line], list[int]]:
        events, numbers = [], []
        for number, line in enumerate(lines, start=first):
            if not line.strip():
                continue
            try:
                events.append(_decoder.decode(line))
                numbers.append(number)
            except (msgspec.MsgspecError, RecursionError) as error:
                self._bad.add(place, number, f"no event ({error})")
        return events, numbers

    def _of_parquet(self, opened: Any, place: str) -> Iterator[pa.Table]:
        try:
            parquet = pq.ParquetFile(opened)
            names = [name for name in _NAMES if name in parquet.schema_arrow.names]
            if absent := [name for name in _NEEDED if name not in names]:
                raise ValueError(f"{place}: no column {', '.join(map(repr, absent))}; an event needs it")
            start = 0
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=names, use_threads=False):
                table = pa.Table.from_batches([batch])
                columns = {name: _column(table.column(name), name, place) for name in names}
                yield self._checked(columns, range(start, start + table.num_rows), place)
                start += table.num_rows
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{place}: not a readable Parquet file ({first_line(error)})") from None

    def _checked(self, columns: dict[str, pa.Array], numbers: Sequence[int], place: str) -> pa.Table:
        """Events of columns that are there, each fault counted once by the number of its line."""
        rows = len(numbers)
        is_bad_B = np.zeros(rows, bool)

        def refuse(is_so_B: Mask, reason: str) -> None:
            for row in np.flatnonzero(is_so_B & ~is_bad_B).tolist():
                self._bad.add(place, numbers[row], reason)
            is_bad_B[is_so_B] = True

        for name in _NEEDED:
            refuse(_mask(columns[name].is_null()), f"no {name}")
        absent = pa.nulls(rows, pa.string())
        received, is_wrong_B = times(columns.get("received", absent))
        refuse(is_wrong_B, "received: no time with its zone")
        given, is_wrong_B = times(columns.get("time", absent))
        refuse(is_wrong_B, "time: no time with its zone")
        received, given = pc.coalesce(received, given), pc.coalesce(given, received)
        refuse(_mask(received.is_null()), "neither received nor time")
        values = columns.get("value", pa.nulls(rows, pa.float64()))
        values_B = values.fill_null(1.0).to_numpy(zero_copy_only=False)
        refuse(~(np.abs(values_B) <= _MOST_VALUE), f"value: not a number between -{_MOST_VALUE:g} and {_MOST_VALUE:g}")
        is_other_B = ~_mask(pc.fill_null(pc.equal(columns.get("model", absent), self._model), True))
        self.other_models += int((is_other_B & ~is_bad_B).sum())
        received_B, given_B = (times.fill_null(0).to_numpy(zero_copy_only=False) for times in (received, given))
        time_B = np.clip(given_B, received_B - micros(OLDEST), received_B)
        is_adding = pc.is_in(columns["type"], self._adding)
        return pa.table(
            {
                "_hour": pa.array((time_B + self._plan.skew) // HOUR * HOUR),
                "_received": received,
                "_time": pa.array(time_B),
                "_given": given,
                "_request_id": columns["request_id"],
                "_candidate_id": columns["id"],
                "_type": columns["type"],
                "_event_id": columns.get("event_id", absent),
                "_place": columns.get("position", pa.nulls(rows, pa.int64())),
                "_value": pa.array(values_B),
                "_is_wrong": pa.array(self._wrong(columns["type"], values_B)),
                "_amount": _amounts(values_B, is_bad_B | ~_mask(is_adding)),
            }
        ).filter(pa.array(~(is_bad_B | is_other_B)))

    def _wrong(self, types: pa.Array, values_B: NDArray[np.float64]) -> Mask:
        """Mask of values that are no label: a training that meets one refuses its whole file."""
        is_wrong_B = np.zeros(len(types), bool)
        for event_type, is_right in self._rules:
            is_mine_B = _mask(pc.fill_null(pc.equal(types, event_type), False))
            is_wrong_B[is_mine_B] |= ~is_right(values_B[is_mine_B])
        return is_wrong_B


def _value_rules(plan: Plan) -> list[tuple[str, Callable[[NDArray[np.float64]], Mask]]]:
    """By type of event the values that its label may have."""
    rules: list[tuple[str, Callable[[NDArray[np.float64]], Mask]]] = []
    for column, label in plan.file.labels.items():
        if label.value in (None, "count"):
            continue
        rules += [(label.event, task.are_labels) for task in plan.tasks_of(column)]
    return rules


def _amounts(values_B: NDArray[np.float64], is_none_B: Mask) -> pa.Array:
    """Values whose sums are exact and the same in any order."""
    return pa.array(np.where(is_none_B, 0.0, values_B), mask=is_none_B).cast(pa.decimal128(38, 9), safe=False)


def _integers(values: list[int | None]) -> pa.Array:
    try:
        return pa.array(values, pa.int64())
    except (OverflowError, pa.ArrowInvalid):  # beyond int64 it is no place
        return pa.array([value if value is None or abs(value) < 2**63 else -1 for value in values], pa.int64())


def _column(values: pa.ChunkedArray, name: str, place: str) -> pa.Array:
    """A column of a Parquet file in the type that it is computed with."""
    values = plain(values)
    is_time = name in ("received", "time") and pa.types.is_timestamp(values.type)
    wanted = {"value": pa.float64(), "position": pa.int64()}.get(name, pa.string())
    try:
        # Nanoseconds are cut off.
        cast = values.cast(pa.timestamp("us", values.type.tz), safe=False) if is_time else values.cast(wanted)
        return pa.concat_arrays(cast.chunks)
    except pa.ArrowException as error:
        raise ValueError(f"{place}: column {name!r}: is {values.type}, cannot be read ({first_line(error)})") from None


def _mask(values: pa.Array) -> Mask:
    mask: Mask = values.to_numpy(zero_copy_only=False)
    return mask
