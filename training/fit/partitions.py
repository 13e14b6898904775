"""Counts of a log by split and part of it, made in one pass: what the data report describes.

In: an indexed log. Out: `Partitions`. The parts of a split are the days of its column where that has times, and the
column's own values otherwise. Of more than MOST_PARTITIONS of them, a split is one part. Rows are gathered across row
groups before they are counted: the cost follows the rows, not how many row groups or parts there are.

Shapes: B rows.
"""

from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from rich.progress import TextColumn

from model.features.id_lookup import Lookup
from training.columns import plain
from training.config import SplitName
from training.data.bad_rows import BadRows
from training.data.index import LogIndex
from training.data.kinds.columns import columns_from_arrow
from training.data.reader import PART_ROWS, LogReader, Part
from training.data.selection import days_of
from training.fit.leaks import Times, Twins
from training.fit.tally import Counts, PartCounts, Tally
from training.progress_bar import progress_bar

MOST_PARTITIONS = 100
MANY = f"(over {MOST_PARTITIONS} values)"


class Partitions(NamedTuple):
    """Counts of each split and of each of its parts by name. `values` says what the names are, `leaks` what training
    rows know of other splits or of labels."""

    splits: dict[SplitName, PartCounts]
    parts: dict[tuple[SplitName, str], PartCounts]
    values: str
    leaks: list[str]


def count_log(reader: LogReader, index: LogIndex, lookups: Mapping[str, Lookup], *, show: bool) -> Partitions:
    """Read the log once. Raises ValueError for faults in the data."""
    column, zone = reader.selector.column, reader.config.bounds.timezone
    times, twins = Times(column), Twins(reader.schema)
    splits = {split: _SplitParts(place * MOST_PARTITIONS) for place, split in enumerate(reader.selector.selections)}
    tally = Tally(reader.schema, lookups, len(splits) * MOST_PARTITIONS)
    for split, table in _gathered(_tables(reader, index, show=show)):
        columns = columns_from_arrow(reader.schema, table, is_coded=True)
        times.add(split, table.column(column))
        if split == "train":
            twins.add(table, columns)
        tally.add(table, columns, splits[split].number_rows(table.column(column), zone))
    values = {value for parts in splits.values() for value in parts.described}
    numbers = {split: range(parts.first, parts.first + MOST_PARTITIONS) for split, parts in splits.items()}
    named = {(split, name): [number] for split, parts in splits.items() for name, number in parts.numbers.items()}
    if len(named) > MOST_PARTITIONS or len(values) > 1:
        named = {(split, MANY): [*numbers[split]] for split in splits}
    return Partitions(
        splits=dict(zip(numbers, tally.counts([*numbers.values()]), strict=True)),
        parts=dict(zip(named, tally.counts([*named.values()]), strict=True)),
        values=values.pop() if len(values) == 1 else "values of several kinds",
        leaks=[*times.warnings(), *twins.warnings()],
    )


class _SplitParts:
    """Numbers of the parts of a split, MOST_PARTITIONS of them from `first` on."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.numbers: dict[str, int] = {}
        self.described: set[str] = set()

    def number_rows(self, values: pa.ChunkedArray, zone: str) -> Counts:
        """Number of the part that each row is in, by its value of the split column, which is not null. Rows of more
        parts than are counted each are in any of them."""
        days, described = days_of(plain(values), zone)
        self.described.add(described)
        encoded = days.combine_chunks().dictionary_encode()
        if len(self.numbers) <= MOST_PARTITIONS:
            names = map(str, encoded.dictionary[: MOST_PARTITIONS + 1].to_pylist())
            numbers = [self.numbers.setdefault(name, self.first + len(self.numbers)) for name in names]
        if len(self.numbers) > MOST_PARTITIONS:
            return np.full(len(values), self.first)
        numbers_B: Counts = np.array(numbers, np.int64).take(encoded.indices.to_numpy())
        return numbers_B


def _tables(reader: LogReader, index: LogIndex, *, show: bool) -> Iterator[tuple[SplitName, pa.Table]]:
    """The rows of every split, row group by row group. Each file is opened once: its footer says of all its groups."""
    groups = {(group.file, group.group) for split in reader.selector.selections for group in index.groups(split)}
    bad_rows = BadRows(reader.config.max_bad_rows)
    with progress_bar(TextColumn("row groups"), show=show) as bar:
        shown = bar.add_task("data report", total=len(groups))
        for number, of_file in groupby(sorted(groups), key=itemgetter(0)):
            file = reader.files.files[number]
            with reader.files.opened(file) as parquet:
                for _, group in of_file:
                    for part in reader.parts(file, parquet, group):
                        yield from _by_split(reader, part, bad_rows)
                    bar.advance(shown)


def _by_split(reader: LogReader, part: Part, bad_rows: BadRows) -> Iterator[tuple[SplitName, pa.Table]]:
    masks = reader.selector.of_rows(part.table, part.place)
    for split, mask in masks.items():
        is_in_B = mask.to_numpy()
        if is_in_B.any():
            yield split, reader.wanted_rows(part, is_in_B, bad_rows)


def _gathered(tables: Iterator[tuple[SplitName, pa.Table]]) -> Iterator[tuple[SplitName, pa.Table]]:
    """The same rows in tables of PART_ROWS and more, and of fewer at the end."""
    waiting: dict[SplitName, list[pa.Table]] = {}
    for split, table in tables:
        of_split = waiting.setdefault(split, [])
        of_split.append(table)
        if sum(part.num_rows for part in of_split) >= PART_ROWS:
            yield split, pa.concat_tables(waiting.pop(split), promote_options="permissive")
    for split, of_split in waiting.items():
        yield split, pa.concat_tables(of_split, promote_options="permissive")
