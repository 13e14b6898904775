"""The file of an hour: `<out>/date=YYYYMMDD/YYYYMMDDTHH.parquet`, and beside all of them its record.

In: rows of an engine in their order. Out: one Parquet file, written whole by a rename, and
`<out>/_join/hours/YYYYMMDDTHH.json` with its counts. The same rows give the same bytes: row groups have a fixed number
of rows, and the metadata name versions, never a time.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.data.retries import first_line
from training.files import replace_file
from training.join.plan import Plan, hour_name, hour_named

FORMAT = 1
_GROUP_ROWS = 65_536


def hour_path(out: Path, hour: int) -> Path:
    """The file of an hour."""
    name = hour_name(hour)
    return out / f"date={name[:8]}" / f"{name}.parquet"


def record_path(out: Path, hour: int) -> Path:
    """The record of an hour. It is written last: where it is, the hour is joined."""
    return out / "_join" / "hours" / f"{hour_name(hour)}.json"


def joined_hours(out: Path) -> list[int]:
    """The hours that are joined, in their order."""
    folder = out / "_join" / "hours"
    names = sorted(path.stem for path in folder.glob("*T*.json")) if folder.is_dir() else []
    return [hour_named(name) for name in names]


def read_record(out: Path, hour: int) -> dict[str, Any]:
    """The record of an hour. Raises ValueError where it is damaged."""
    path = record_path(out, hour)
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: not the record of a joined hour ({error}); remove it to join the hour anew"
        ) from None
    return record


def write_record(out: Path, hour: int, record: dict[str, Any]) -> None:
    """Write the record of an hour whose file is there."""
    replace_file(record_path(out, hour), [json.dumps({"format": FORMAT, **record}, indent=1).encode()])


class Tally:
    """Counts of the rows that pass."""

    def __init__(self) -> None:
        self.rows = 0
        self.shown = 0
        self.implied = 0

    def count(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Pass batches on, counted."""
        for batch in batches:
            shown, named = batch.column("_is_shown"), batch.column("_is_named")
            self.rows += batch.num_rows
            self.shown += pc.sum(shown).as_py() or 0
            self.implied += pc.sum(pc.and_not(named, shown)).as_py() or 0
            yield batch


def write_hour(plan: Plan, hour: int, batches: Iterable[pa.RecordBatch], engine: str) -> None:
    """Write the file of an hour. Raises ValueError where the disk is full."""
    path = hour_path(plan.out, hour)
    partial = path.with_name(f".{path.name}.partial")
    schema = plan.columns.with_metadata({"feedrank.join": f"format {FORMAT}, {engine}, pyarrow {pa.__version__}"})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(partial, schema, compression="zstd", write_page_checksum=True) as writer:
            for table in _groups(batches, schema):
                writer.write_table(table, row_group_size=_GROUP_ROWS)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be written ({error.strerror or first_line(error)}); the hours before it are kept"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def _groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows as tables of a row group each."""
    held: list[pa.Table] = []
    rows = 0
    for batch in batches:
        held.append(_in_schema(pa.Table.from_batches([batch]), schema))
        rows += batch.num_rows
        while rows >= _GROUP_ROWS:
            table = pa.concat_tables(held)
            yield table.slice(0, _GROUP_ROWS).combine_chunks()
            held, rows = [table.slice(_GROUP_ROWS)], rows - _GROUP_ROWS
    if rows:
        yield pa.concat_tables(held).combine_chunks()


def _in_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        values = table.column(field.name)
        if pa.types.is_timestamp(field.type):
            values = values.cast(pa.timestamp("us", "UTC")).cast(field.type, safe=False)
        elif pa.types.is_decimal(values.type):  # by way of text: Arrow's own cast does not give the nearest float
            values = values.cast(pa.string()).cast(field.type)
        columns.append(values.cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)
