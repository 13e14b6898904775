"""A training split that is larger than memory as a source: Parquet on any fsspec path, read by row group.

order.py says which rows come when. A process keeps, of each of its lanes, the window it gives rows from, and reads
ahead at most one more each. A resumed run reads its current windows and nothing before them. A row group that a border
between lanes cuts is read by both, lanes - 1 of an epoch at most.

Groups of rows that stay together (data.together) do so within a window. A group that a window's border cuts is two. A
batch then has fewer or more rows by less than a group of each lane. How many only a lane's reader knows, so that
several processes, whose parts of a batch have to be as long as each other, are refused.

Shapes: B rows, G groups of a window, T tasks.
"""

import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Self

import numpy as np
import pyarrow.parquet as pq
import torch
import xxhash
from torch import Tensor

from model.features.encoder import FeatureEncoder
from training.config import SplitName
from training.data.bad_rows import BadRows
from training.data.index import LogIndex
from training.data.order import Groups, Lane, Piece, Window, lane_rows, lanes_of_epoch, shuffled
from training.data.reader import LogReader
from training.data.retries import retried
from training.data.rows import Batch, Rows, joined
from training.data.source import filled
from training.wording import counted

log = logging.getLogger(__name__)

# Footers of so many files are kept, for their next row groups. A footer takes about a megabyte, so no more than these.
_FOOTERS = 32


class StreamSource:
    """The training split of an indexed log. A process reads its share of the lanes."""

    def __init__(
        self,
        reader: LogReader,
        index: LogIndex,
        encoder: FeatureEncoder,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """`batch_size` is that of the global batch. Raises ValueError for lanes that cannot be shared out."""
        config = reader.config
        self._split = SplitReader(reader, index, encoder, "train")
        self._content = index.content()
        self._batch_size, self._seed = batch_size, seed
        self._lanes, self._window, self.readers = config.lanes, config.window, config.readers
        self._rank, self._world = rank, world
        self._is_grouped = config.together is not None
        self.rows = index.rows("train")
        self.steps = -(-self.rows // batch_size)
        if self._is_grouped and world > 1:
            raise ValueError(
                f"data.together: a stream keeps rows together for one process, and here are {world}; use read: memory"
            )
        if self._lanes % world:
            raise ValueError(f"data.lanes: {self._lanes} lanes cannot be shared evenly by {world} processes")
        if self.rows < self._lanes:
            raise ValueError(f"data.lanes: {self._lanes} is more than the {self.rows} training rows; read: memory")

    def fingerprint(self) -> str:
        """A hash over the files' footers and sizes and over all that the order of the rows follows from."""
        together = " together" if self._is_grouped else ""
        order = f"{self._content} {self._batch_size} {self._seed} {self._lanes} {self._window}{together}"
        return xxhash.xxh3_128_hexdigest(order.encode())

    def batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """This process's part of each global batch (source.py). Raises ValueError for a fault in the data, and where a
        file is gone or has changed since it was indexed."""
        lanes = lanes_of_epoch(self._split.rows_of_group, self._lanes, self._window, self._seed, epoch)
        own = lanes[self._rank :: self._world]
        given = min(first_step * self._batch_size, self.rows)
        starts = [lane_rows(given, lane.number, self._lanes) for lane in own]
        left = [
            (window.start * self._lanes + lane.number, lane.number, window)
            for lane, start in zip(own, starts, strict=True)
            for window in lane.windows
            if window.stop > start
        ]
        windows = [(lane, window) for _, lane, window in sorted(left)]
        with _ReadAhead(self, epoch, windows, len(own)) as ahead:
            cursors = [_Cursor(lane, start, ahead) for lane, start in zip(own, starts, strict=True)]
            for end in range(given + self._batch_size, self.rows + self._batch_size, self._batch_size):
                ends = [lane_rows(min(end, self.rows), lane.number, self._lanes) for lane in own]
                parts = [part for cursor, stop in zip(cursors, ends, strict=True) for part in cursor.take_batches(stop)]
                # The last batch may have fewer rows than there are processes.
                part = joined(parts) if parts else self.read(epoch, own[0].number, own[0].windows[-1]).part(0, 0)
                if self._is_grouped:
                    if epoch == first_step == 0 and end >= self.rows:
                        alone = sum(cursor.rows_alone for cursor in cursors)
                        log.info(
                            "data.together: %s of %s alone in their group", counted(alone, "row"), f"{self.rows:,}"
                        )
                    yield filled(part._replace(groups_B=_numbered(parts)), max(1, len(part.targets_BT)))
                else:
                    yield filled(part, self._longest(end - self._batch_size, min(end, self.rows)))

    def _longest(self, start: int, end: int) -> int:
        """Rows of the longest process's part of the global batch from row `start` to `end` of an epoch."""
        taken = [lane_rows(end, lane, self._lanes) - lane_rows(start, lane, self._lanes) for lane in range(self._lanes)]
        return max(sum(taken[rank :: self._world]) for rank in range(self._world))

    def read(self, epoch: int, lane: int, window: Window) -> Rows:
        """The rows of a window, shuffled."""
        rows = self._split.rows(window.pieces)
        if rows.groups_B is None:
            order = shuffled(len(rows), self._seed, epoch, lane, window.number)
            return Rows(rows.take_batch(torch.from_numpy(order)))
        groups = Groups.of(rows.groups_B.numpy())
        groups.refuse_larger(self._batch_size)
        order_G = shuffled(len(groups.sizes_G), self._seed, epoch, lane, window.number)
        batch = rows.take_batch(torch.from_numpy(groups.picked(order_G)))
        numbers_B = np.repeat(np.arange(len(order_G)), groups.sizes_G[order_G])
        return Rows(batch._replace(groups_B=torch.from_numpy(numbers_B)))


class SplitReader:
    """Reads and encodes pieces of a split's row groups. Threads may share it."""

    def __init__(self, reader: LogReader, index: LogIndex, encoder: FeatureEncoder, split: SplitName) -> None:
        self._reader, self._index, self._encoder, self._split = reader, index, encoder, split
        self._groups = index.groups(split)
        self._footers: dict[int, pq.FileMetaData] = {}
        self.rows_of_group = [group.rows for group in self._groups]

    def rows(self, pieces: Sequence[Piece]) -> Rows:
        """The rows of the pieces, encoded, in their order."""
        return Rows(joined([part for piece in pieces for part in self._read_again(piece)]))

    def whole(self) -> Rows:
        """All rows of the split, in the order of the log."""
        return self.rows([Piece(place, 0, rows) for place, rows in enumerate(self.rows_of_group)])

    def _read_again(self, piece: Piece) -> list[Batch]:
        """The parts of a piece, read again where a file system's fault may pass."""
        file = self._reader.files.files[self._groups[piece.group].file]
        return retried(lambda: list(self._read(piece)), self._reader.files.shown(file))

    def _read(self, piece: Piece) -> Iterator[Batch]:
        file = self._groups[piece.group].file
        self._check_unchanged(file)
        try:
            yield from self._read_group(piece)
        except ValueError:
            # Whatever a file that changes while it is read has broken: that it changed is what to say.
            self._check_unchanged(file)
            raise

    def _read_group(self, piece: Piece) -> Iterator[Batch]:
        reader, group = self._reader, self._groups[piece.group]
        file = reader.files.files[group.file]
        is_trained = self._split == "train"
        weight = reader.config.weight if is_trained else None
        together = reader.config.together if is_trained else None
        bad_rows = BadRows(reader.config.max_bad_rows)  # the index has counted and reported them
        given = 0
        with reader.files.opened(file, self._footers.get(group.file)) as parquet:
            self._keep_footer(group.file, parquet.metadata)
            for part in reader.parts(file, parquet, group.group):
                rows_in = part.table.num_rows
                is_in_B = np.ones(rows_in, bool) if group.is_whole else reader.of_split(part, self._split)
                table, columns = reader.wanted(part, is_in_B, bad_rows)
                first, given = given, given + table.num_rows
                if first >= piece.stop:
                    break
                start, stop = max(piece.start - first, 0), min(piece.stop - first, table.num_rows)
                if start < stop:
                    rows = Rows.encode(
                        reader.schema,
                        self._encoder,
                        table,
                        columns,
                        as_served=False,
                        weight=weight,
                        together=together,
                        is_part=True,
                    )
                    yield rows.part(start, stop)
        if given < piece.stop:
            raise ValueError(
                f"{reader.files.shown(file)}, row group {group.group}: {given} rows of split {self._split} where there "
                f"were {group.rows}; {_CHANGED}"
            )

    def _check_unchanged(self, number: int) -> None:
        file, indexed = self._reader.files.files[number], self._index.files[number]
        size, stamp = self._reader.files.size_and_time(file)
        if (size, stamp) != (indexed.size, indexed.stamp):
            raise ValueError(
                f"{self._reader.files.shown(file)}: has changed since it was indexed ({indexed.size:,} bytes then, "
                f"{size:,} now); {_CHANGED}"
            )

    def _keep_footer(self, number: int, metadata: pq.FileMetaData) -> None:
        self._footers[number] = metadata
        if len(self._footers) > _FOOTERS:
            self._footers.pop(next(islice(self._footers, 1)), None)


_CHANGED = "what was saved is kept: put the file back and start again to go on, or start a new run on it as it is"


class _ReadAhead:
    """Reads windows in threads, in the order in which they will be taken, one a lane ahead of those that were."""

    def __init__(self, source: StreamSource, epoch: int, windows: Sequence[tuple[int, Window]], ahead: int) -> None:
        self._source, self._epoch, self._ahead = source, epoch, ahead
        self._waiting = iter(windows)
        self._reading: dict[tuple[int, int], Future[Rows]] = {}
        self._pool = ThreadPoolExecutor(source.readers, "reader") if source.readers else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def take_rows(self, lane: int, window: Window) -> Rows:
        """The rows of a window. Waits for them, and raises what went wrong in reading them."""
        if self._pool is None:
            return self._source.read(self._epoch, lane, window)
        # Small windows may be taken in another order within a batch: then more than `ahead` are on their way.
        while (lane, window.number) not in self._reading:
            self._start_next(self._pool)
        rows = self._reading.pop((lane, window.number)).result()
        while len(self._reading) < self._ahead and self._start_next(self._pool):
            pass
        return rows

    def _start_next(self, pool: ThreadPoolExecutor) -> bool:
        lane, window = next(self._waiting, (0, None))
        if window is not None:
            self._reading[lane, window.number] = pool.submit(self._source.read, self._epoch, lane, window)
        return window is not None


class _Cursor:
    """Position of a lane, with the rows of its window."""

    def __init__(self, lane: Lane, row: int, ahead: _ReadAhead) -> None:
        self.lane = lane
        self._row = row
        self._place = lane.window_of(row)
        self._ahead = ahead
        self._rows: Rows | None = None
        # Ends of the groups of the window's rows, where these stay together.
        self._ends: list[int] | None = None
        self.rows_alone = 0

    def take_batches(self, stop: int) -> Iterator[Batch]:
        """The rows up to `stop`, or of the groups that end there or before, in parts that are in one window each."""
        while self._row < stop:
            window = self.lane.windows[self._place]
            if self._rows is None:
                self._rows = self._ahead.take_rows(self.lane.number, window)
                self._find_groups(self._rows)
                # A run that resumes amid a group has not trained on any of it.
                self._row = window.start + self._whole_groups(self._row - window.start)
            end = window.start + self._whole_groups(min(stop, window.stop) - window.start)
            if end == self._row:
                return
            yield self._rows.part(self._row - window.start, end - window.start)
            self._row = end
            if end == window.stop:
                self._place += 1
                self._rows = None

    def _find_groups(self, rows: Rows) -> None:
        if rows.groups_B is not None:
            _, sizes = torch.unique_consecutive(rows.groups_B, return_counts=True)
            self._ends = torch.cumsum(sizes, 0).tolist()
            self.rows_alone += int((sizes == 1).sum())

    def _whole_groups(self, rows: int) -> int:
        """Rows of the groups of a window that end within its first `rows`: all of these where rows are single."""
        if self._ends is None:
            return rows
        groups = bisect_right(self._ends, rows)
        return self._ends[groups - 1] if groups else 0


def _numbered(parts: Sequence[Batch]) -> Tensor:
    """groups_B of a batch of parts, numbered through all of them."""
    numbers, groups = [torch.zeros(0, dtype=torch.int64)], 0
    for part in parts:
        assert part.groups_B is not None
        _, own_B = torch.unique_consecutive(part.groups_B, return_inverse=True)
        numbers.append(own_B + groups)
        groups += int(own_B[-1]) + 1
    return torch.cat(numbers)
