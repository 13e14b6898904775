"""Index of a log: its files, their row groups, and the rows of each that are in a split.

Counts come from the row groups' statistics or the partition's value where these decide, otherwise from one read of the
split column. With a budget of bad rows (data.max_bad_rows) they come from one read of all columns, which counts what is
left out. The index is kept in a file and is valid as long as every file has the size and the time it had.
"""

import io
import logging
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from model.strict_yaml import StrictModel
from training.columns import plain
from training.config import SplitName
from training.data.bad_rows import BadRows
from training.data.files import LogFile, LogFiles, partition_type, with_partition
from training.data.found import Found
from training.data.moving.days import column_statistics
from training.data.reader import LogReader
from training.data.retries import retried
from training.files import replace_file
from training.wording import counted

log = logging.getLogger(__name__)

INDEX = "data_index.json"
# So many remote files are requested at once.
_ASKED_AT_ONCE = 8


class Group(NamedTuple):
    """A row group with rows of a split: its file's place, its own, the rows, and whether those are all it has."""

    file: int
    group: int
    rows: int
    is_whole: bool


class FileIndex(StrictModel):
    """A file: its state when it was indexed, a hash of its footer, and its row groups' rows."""

    name: str
    size: int
    stamp: str
    footer: str
    rows: tuple[int, ...]
    # By split, the rows of each row group that are in it and break no rule.
    wanted: dict[str, tuple[int, ...]]
    # Columns that it lacks, which are null.
    filled: tuple[str, ...] = ()


class LogIndex(StrictModel):
    """The files of a log in order. `about` says what it was made for, `skipped` counts bad rows by what is wrong."""

    about: str
    files: tuple[FileIndex, ...]
    skipped: dict[str, int]
    # Rows of the splits without a value of the column that names groups (data.group_by).
    ungrouped: int

    def found(self, files: LogFiles, group_by: str | None) -> Found:
        """Statement of the log's data, as a job makes it."""
        rows = sum(sum(file.rows) for file in self.files)
        splits = Counter({split: self.rows(split) for split in get_args(SplitName) if split in self.files[0].wanted})
        found = Found(files, rows, splits, self.skipped, group_by, self.ungrouped)
        for file in self.files:
            found.add_filled(file.filled, sum(file.rows))
        return found

    def rows(self, split: SplitName) -> int:
        """Rows of a split."""
        return sum(sum(file.wanted[split]) for file in self.files)

    def groups(self, split: SplitName) -> list[Group]:
        """The row groups that have rows of a split, in order."""
        return [
            Group(number, group, rows, rows == file.rows[group])
            for number, file in enumerate(self.files)
            for group, rows in enumerate(file.wanted[split])
            if rows
        ]

    def content(self) -> str:
        """A hash of what the splits were read from. It does not depend on the files' place and times, nor on files that
        have none of their rows: days that come later."""
        parts = [
            f"{file.name} {file.size} {file.footer} {sorted(file.wanted.items())}"
            for file in self.files
            if any(map(any, file.wanted.values()))
        ]
        return xxhash.xxh3_128_hexdigest("\n".join(parts).encode())


def index_of(reader: LogReader, kept: Path | None = None) -> LogIndex:
    """The index of a log. It is kept in the file `kept`, and taken from there where no file has changed since.

    Raises ValueError for a file that does not fit the others or the schema, a split without rows, and more bad rows
    than data.max_bad_rows."""
    files = reader.files
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        states = list(pool.map(files.size_and_time, files.files))
    about = _about(reader)
    if kept is not None and (found := _read(kept)) is not None:
        names = [file.name for file in files.files]
        if found.about == about and [(f.name, f.size, f.stamp) for f in found.files] == [
            (name, *state) for name, state in zip(names, states, strict=True)
        ]:
            return found
    log.info("%s: counting the rows of %s", reader.config.path, counted(len(states), "file"))
    bad_rows = BadRows(reader.config.max_bad_rows)
    first: pa.Schema | None = None
    indexed, ungrouped = [], 0
    for file, state in zip(files.files, states, strict=True):
        read = retried(partial(_indexed, reader, file, state, first, bad_rows), files.shown(file))
        first, bad_rows = first or read.kinds, read.bad_rows
        indexed.append(read.file)
        ungrouped += read.ungrouped
    index = LogIndex(about=about, files=tuple(indexed), skipped=dict(bad_rows.skipped), ungrouped=ungrouped)
    for split in reader.selector.selections:
        if not index.rows(split):
            raise reader.selector.no_row(reader.config.path, split)
    if kept is not None:
        replace_file(kept, (index.model_dump_json().encode(),))
    return index


class _Indexed(NamedTuple):
    """A file's index, the columns so far, its rows of splits that name no group, and all bad rows so far."""

    file: FileIndex
    kinds: pa.Schema | None
    ungrouped: int
    bad_rows: BadRows


def _indexed(
    reader: LogReader, file: LogFile, state: tuple[int, str], first: pa.Schema | None, bad_rows: BadRows
) -> _Indexed:
    bad_rows = bad_rows.copy()  # a file that is read again is counted once
    with reader.files.opened(file) as parquet:
        groups = range(parquet.num_row_groups)
        is_outside = reader.selector.is_outside(file, reader.files.shown(file))
        if is_outside:  # of a folder that no split takes: its rows are counted, and nothing else is asked of it
            counts = [dict.fromkeys(reader.selector.selections, 0) for _ in groups]
        else:
            reader.files.check_names(file, parquet, reader.names, reader.absent.may_lack)
            reader.refuse_misfit(file, parquet.schema_arrow, first or parquet.schema_arrow)
            counts = [_count(reader, file, parquet, group, bad_rows) for group in groups]
        lacked = reader.absent.may_lack.difference(parquet.schema_arrow.names, file.partition)
        size, stamp = state
        index = FileIndex(
            name=file.name,
            size=size,
            stamp=stamp,
            footer=_footer_hash(parquet.metadata),
            rows=tuple(parquet.metadata.row_group(group).num_rows for group in groups),
            wanted={split: tuple(count[split] for count in counts) for split in reader.selector.selections},
            filled=() if is_outside else tuple(sorted(lacked)),
        )
        nulls = sum(_ungrouped(reader, file, parquet, group, count) for group, count in enumerate(counts))
        kinds = first if is_outside else _with_more(first, parquet.schema_arrow)
        return _Indexed(index, kinds, nulls, bad_rows)


def _with_more(first: pa.Schema | None, held: pa.Schema) -> pa.Schema:
    """The columns as the first files that have them hold them."""
    known = [] if first is None else [*first]
    return pa.schema([*known, *(each for each in held if first is None or each.name not in first.names)])


def _about(reader: LogReader) -> str:
    """Inputs of the counts beside the files."""
    checked = reader.schema.model_dump_json() if reader.config.max_bad_rows else ""
    asked = f"{reader.config.bounds.model_dump_json()} {reader.names} {reader.config.max_bad_rows} {checked}"
    return xxhash.xxh3_128_hexdigest(asked.encode())


def _read(kept: Path) -> LogIndex | None:
    try:
        return LogIndex.model_validate_json(kept.read_bytes())
    except (OSError, ValueError):  # absent, or written by another version: it is made again
        return None


def _footer_hash(metadata: pq.FileMetaData) -> str:
    footer = io.BytesIO()
    metadata.write_metadata_file(footer)
    return xxhash.xxh3_128_hexdigest(footer.getvalue())


def _count(
    reader: LogReader, file: LogFile, parquet: pq.ParquetFile, group: int, bad_rows: BadRows
) -> dict[SplitName, int]:
    """The rows of a row group by split, those left out that break a rule."""
    rows = parquet.metadata.row_group(group).num_rows
    place = f"{reader.files.shown(file)}, row group {group}"
    if reader.config.max_bad_rows:
        counts = dict.fromkeys(reader.selector.selections, 0)
        for part in reader.parts(file, parquet, group):
            for split, mask in reader.selector.of_rows(part.table, place).items():
                counts[split] += reader.wanted(part, mask.to_numpy(), bad_rows)[0].num_rows
        return counts
    decided = _decided(reader, file, parquet, group, place)
    if decided is not None and sum(decided.values()) <= 1:
        return {split: rows * is_in for split, is_in in decided.items()}
    names = [name for name in reader.selector.columns if name not in file.partition]
    table = parquet.read_row_group(group, columns=names, use_threads=False) if names else pa.table({"": pa.nulls(rows)})
    masks = reader.selector.of_rows(with_partition(table, file, reader.selector.columns), place)
    return {split: pc.sum(mask).as_py() or 0 for split, mask in masks.items()}


def _ungrouped(
    reader: LogReader, file: LogFile, parquet: pq.ParquetFile, group: int, counts: Mapping[SplitName, int]
) -> int:
    """The rows of a row group that are in a split and name no group, bad ones among them."""
    name, rows = reader.config.group_by, parquet.metadata.row_group(group).num_rows
    in_splits = sum(counts.values())
    if name is None or not in_splits:
        return 0
    if name in file.partition:
        return in_splits if file.partition[name] is None else 0
    statistics = column_statistics(parquet, group, name)
    if statistics is not None and statistics.has_null_count and not statistics.null_count:
        return 0
    column = reader.selector.column
    names = [each for each in dict.fromkeys([name, column]) if each not in file.partition]
    table = with_partition(parquet.read_row_group(group, columns=names, use_threads=False), file, [column])
    is_null = plain(table.column(name)).is_null()
    if in_splits == rows:
        return int(pc.sum(is_null).as_py() or 0)
    masks = reader.selector.of_rows(table, reader.files.shown(file)).values()
    return sum(int(pc.sum(pc.and_(is_null, mask)).as_py() or 0) for mask in masks)


def _decided(
    reader: LogReader, file: LogFile, parquet: pq.ParquetFile, group: int, place: str
) -> dict[SplitName, bool] | None:
    """The splits that all rows of a row group are in, by the partition or by statistics. None where these do not
    say."""
    name = reader.selector.column
    if name in file.partition:
        value = file.partition[name]
        return None if value is None else reader.selector.by_bounds(value, value, partition_type(value), place)
    statistics = column_statistics(parquet, group, name)
    kind = parquet.schema_arrow.field(name).type
    if statistics is None or not statistics.has_min_max or not statistics.has_null_count or statistics.null_count:
        return None
    if pa.types.is_floating(kind):  # NaN is in no bound
        return None
    try:
        least, most = statistics.min, statistics.max
    except ValueError:  # nanoseconds, which Python's times do not have
        return None
    return reader.selector.by_bounds(least, most, kind, place)
