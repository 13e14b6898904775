"""Users in Parquet files: rows that a warehouse exports, and rows that a join made.

In: a file or a folder of them. Out: batches of (user's key, what is put of it), in the files' order. Raises ValueError
naming file, row and rule.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from model.state_file import ID, StateFile
from service.state.user_state import Entry, canonical_key, identity_of

BATCH_ROWS = 5_000
_TIME = "_time"
_APART_SECONDS = 0.001


class Row(NamedTuple):
    """State that is put of a user. `adds` is True where histories gain these entries, otherwise they are replaced."""

    key: str
    fields: dict[str, Any]
    lists: dict[str, list[Entry]]
    adds: bool


class Labels(NamedTuple):
    """Of joined rows: columns that tell of an event, by its type."""

    columns: Mapping[str, Sequence[str]]


def files_of(path: Path) -> list[Path]:
    """The Parquet files of a folder, by their paths, or the file itself. Raises ValueError where there are none."""
    if path.is_file():
        return [path]
    found = sorted(
        file
        for file in path.glob("**/*.parquet")
        if not any(p.startswith(("_", ".")) for p in file.relative_to(path).parts)
    )
    if not found:
        raise ValueError(f"{path}: no Parquet file there")
    return found


def num_rows(file: Path) -> int:
    """Rows of a file."""
    with _opened(file) as opened:
        return int(opened.metadata.num_rows)


def exported_rows(file: Path, state: StateFile, first_row: int, now: float) -> Iterator[list[Row]]:
    """Rows of a file whose columns are the key, fields and histories of state.yaml, from a row on. A history's times
    are in a column `<history>_time`, or just before now."""
    known = [state.key, *state.fields, *state.append, *(f"{name}{_TIME}" for name in state.append)]
    with _opened(file) as opened:
        names = opened.schema_arrow.names
        _need(file, names, [state.key])
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"{file}: column {unknown[0]} is not in state.yaml; it has: {', '.join(known)}")
        for start, rows in _batches(opened, names, first_row):
            yield [_exported(row, state, now, f"{file}: row {start + n}") for n, row in enumerate(rows)]


def joined_rows(file: Path, state: StateFile, labels: Labels) -> Iterator[list[Row]]:
    """Rows that a join made: fields as they were last used, and an entry for each event that a label tells of."""
    with _opened(file) as opened:
        names = opened.schema_arrow.names
        _need(file, names, [state.key, _TIME, "_request_id", "_candidate_id"])
        sources = {name: "_candidate_id" if one.value == ID else one.value for name, one in state.append.items()}
        fields = [name for name in state.fields if name in names]
        told = {
            name: [c for c in labels.columns.get(one.event, ()) if c in names] for name, one in state.append.items()
        }
        for name, columns in told.items():
            if not columns:
                raise ValueError(f"{file}: no label tells of event {state.append[name].event}, which {name} is made of")
            _need(file, names, [sources[name]])
        wanted = {state.key, _TIME, "_request_id", "_candidate_id", *fields, *sources.values()}
        wanted |= {column for columns in told.values() for column in columns}
        for _, rows in _batches(opened, sorted(wanted), 0):
            batch = []
            for row in rows:
                key = canonical_key(row[state.key])
                if key is None:
                    continue
                time = _unix(row[_TIME])
                lists = {}
                for name, columns in told.items():
                    value = row[sources[name]]
                    if value is not None and any(row[column] for column in columns):
                        event = state.append[name].event
                        identity = identity_of("joined", row["_request_id"], row["_candidate_id"], event)
                        lists[name] = [Entry(value, time, identity)]
                given = {name: row[name] for name in fields if row[name] is not None}
                batch.append(Row(key, given, lists, adds=True))
            yield batch


def _exported(row: Mapping[str, Any], state: StateFile, now: float, place: str) -> Row:
    try:
        key = canonical_key(row[state.key])
    except ValueError as error:
        raise ValueError(f"{place}: {state.key}: {error}") from None
    if key is None:
        raise ValueError(f"{place}: {state.key}: null; each row needs the key of a user")
    lists = {}
    for name in state.append:
        values = row.get(name)
        if values is None:
            continue
        times = row.get(f"{name}{_TIME}")
        if not isinstance(values, list) or (times is not None and len(times) != len(values)):
            raise ValueError(f"{place}: {name}: expected a list, and as many times where {name}{_TIME} has them")
        at = (
            [now - _APART_SECONDS * (len(values) - n) for n in range(len(values))]
            if times is None
            else map(_unix, times)
        )
        lists[name] = [Entry(value, time) for value, time in zip(values, at, strict=True) if value is not None]
    fields = {name: row[name] for name in state.fields if row.get(name) is not None}
    return Row(key, fields, lists, adds=False)


def _batches(
    opened: pq.ParquetFile, names: Sequence[str], first_row: int
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    start = 0
    for batch in opened.iter_batches(BATCH_ROWS, columns=list(names)):
        end = start + batch.num_rows
        if end > first_row:
            skipped = max(0, first_row - start)
            yield start + skipped, batch.slice(skipped).to_pylist()
        start = end


def _unix(given: object) -> float:
    if isinstance(given, datetime):
        return (given if given.tzinfo is not None else given.replace(tzinfo=UTC)).timestamp()
    if isinstance(given, str):
        return _unix(datetime.fromisoformat(given))
    if isinstance(given, int | float):
        return float(given)
    raise ValueError("a time is needed where there is a value")


def _need(file: Path, names: Sequence[str], needed: Sequence[str]) -> None:
    for name in needed:
        if name not in names:
            raise ValueError(f"{file}: no column {name}; it has: {', '.join(names)}")


def _opened(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: cannot be read as Parquet ({error})") from None
