"""Reads a log by row group, in parts of a few thousand rows: checked, cut to a split, and freed of bad rows.

In: the training file's data and the feed schema. Out: `LogReader`, whose parts are Arrow tables with the features'
columns, strings each once. Memory has one part and one row group's compressed pages. Every fault is a
ValueError that names the file, the row group, the column and the row in that row group.

Shapes: B rows.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from model.features.kinds.columns import Column
from model.schema import FeedSchema
from training.config import DataConfig, SplitName
from training.data.arrow import AbsentColumns, LogColumns
from training.data.bad_rows import BadRows, Fault, Mask
from training.data.files import LogFile, LogFiles, with_partition
from training.data.groups import refuse_ungroupable
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import columns_to_read, other_columns
from training.data.selection import Selector
from training.data.usual_types import usual_type

# Arrays of so many rows stay in the processor's cache from decoding to encoding.
PART_ROWS = 32_768


class Part(NamedTuple):
    """Consecutive rows of a row group. `before` of its rows come before them. `faults` are those of their rows."""

    place: str
    before: int
    table: pa.Table
    columns: dict[str, Column]
    faults: list[Fault]


class LogReader:
    """Reads the log of a training file. Raises ValueError where the folder has no file."""

    def __init__(self, config: DataConfig, schema: FeedSchema) -> None:
        self.config = config
        self.schema = schema
        self.files = LogFiles(config.path)
        self.selector = Selector(config.bounds, config.group_by)
        self.names = columns_to_read(config, schema)
        self.absent = AbsentColumns(schema, other_columns(config))
        self._columns = LogColumns(schema, config.weight, is_coded=True)

    def refuse_misfit(self, file: LogFile, held: pa.Schema, first: pa.Schema) -> None:
        """Raise ValueError for a file whose columns cannot be used, or have types that do not go with the first
        file's."""
        place = self.files.shown(file)
        read = [name for name in self.names if name in held.names and name not in file.partition]
        for name in (name for name in read if name in first.names):
            kinds = [schema.field(name).type for schema in (first, held)]
            fields = [pa.schema([(name, usual_type(kind))]) for kind in kinds]
            try:
                pa.unify_schemas(fields, promote_options="permissive")
            except pa.ArrowException:
                raise ValueError(
                    f"{place}: column '{name}' is {kinds[1]}, and {kinds[0]} in the log's first file; write it alike "
                    "in every file"
                ) from None
        empty = with_partition(pa.schema([held.field(name) for name in read]).empty_table(), file, self.names)
        empty, _ = self.absent.fill(empty, self.files, place)
        self._columns.read(empty, place)
        if (group_by := self.config.group_by) is not None:
            try:
                refuse_ungroupable(usual_type(empty.schema.field(group_by).type), group_by)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None

    def parts(self, file: LogFile, parquet: pq.ParquetFile, group: int) -> Iterator[Part]:
        """The row group's rows in order, of every split."""
        place = f"{self.files.shown(file)}, row group {group}"
        held = parquet.schema_arrow.names
        names = [name for name in self.names if name in held and name not in file.partition]
        before = 0
        for batch in parquet.iter_batches(PART_ROWS, row_groups=[group], columns=names, use_threads=False):
            table = with_partition(pa.Table.from_batches([batch]), file, self.names)
            table, _ = self.absent.fill(table, self.files, place)
            yield Part(place, before, *self._columns.read(table, place))
            before += table.num_rows

    def of_split(self, part: Part, split: SplitName) -> Mask:
        """Mask of the rows of a part that are in a split."""
        mask: Mask = self.selector.of_rows(part.table, part.place)[split].to_numpy()
        return mask

    def wanted_rows(self, part: Part, is_in_B: Mask, bad_rows: BadRows) -> pa.Table:
        """The rows of a part that are in a split and break no rule."""
        is_good_B = bad_rows.good_rows(part.faults, part.place, is_in_B, part.before)
        is_wanted_B = is_in_B if is_good_B is None else is_in_B & is_good_B
        return part.table if is_wanted_B.all() else part.table.filter(pa.array(is_wanted_B))

    def wanted(self, part: Part, is_in_B: Mask, bad_rows: BadRows) -> tuple[pa.Table, dict[str, Column]]:
        """The same rows, and their features' columns."""
        table = self.wanted_rows(part, is_in_B, bad_rows)
        if not part.faults and table is part.table:
            return table, part.columns
        return table, columns_from_arrow(self.schema, table, is_coded=True)
