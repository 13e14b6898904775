"""Fits features on a split that need not fit into memory: piece by piece, in processes, and going on after a kill.

In: the training file's data and the feed schema. Out: a `FittingPass` over the split. A piece is some row groups of one
file. Its counts are kept in a work folder as soon as it is read, so that a fit that was killed reads no piece twice.
Pieces are joined in their order: the result does not depend on the number of processes.
"""

import io
import logging
import multiprocessing
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from model.features.fitted import FittingPass
from model.schema import FeedSchema
from training.config import DataConfig, SplitName
from training.data.bad_rows import BadRows
from training.data.index import INDEX, LogIndex, index_of
from training.data.reader import LogReader
from training.data.retries import retried
from training.data.rows import scaled_labels
from training.distributed.processes import belong_to_parent
from training.files import replace_file
from training.fit.fitted_file import parts_of

log = logging.getLogger(__name__)

# Rows of a piece, unless a row group has more: what a kill loses at most, in each process.
PIECE_ROWS = 2_000_000
# Part of a piece's name: raised when the content of pieces changes.
_FORMAT = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """Row groups of one file, `rows` of theirs in the split, and the file that keeps their counts."""

    file: int
    groups: tuple[int, ...]
    rows: int
    kept: Path


def fit_log(
    config: DataConfig,
    schema: FeedSchema,
    split: SplitName,
    work: Path,
    *,
    processes: int = 1,
    done: Callable[[int, int], None] = lambda rows, of: None,
) -> FittingPass:
    """A pass over a split, with the counts of every table. `done` is called with the rows of each piece, and of all.

    Raises ValueError for what is wrong with the data, and where a worker process dies. What was read is kept."""
    reader = LogReader(config, schema)
    reader.selector.require(split)
    index = index_of(reader, work / INDEX)
    pieces = _pieces(config, schema, index, split, work)
    missing = [piece for piece in pieces if not piece.kept.exists()]
    of = sum(piece.rows for piece in pieces)
    done(of - sum(piece.rows for piece in missing), of)
    for piece in _fit_all(config, schema, split, missing, processes):
        done(piece.rows, of)
    whole = FittingPass(schema, every_table=True)
    for piece in pieces:
        part = FittingPass(schema, every_table=True)
        if not _restored(part, piece):
            log.warning("%s: damaged; its rows are read again", piece.kept)
            fit_piece(config, schema, split, piece)
            part = FittingPass(schema, every_table=True)
            if not _restored(part, piece):
                raise ValueError(f"{piece.kept}: cannot be read back right after it was written; check the disk")
        whole.merge(part)
    return whole


def fit_piece(config: DataConfig, schema: FeedSchema, split: SplitName, piece: Piece) -> Piece:
    """Read a piece and keep its counts."""
    reader = LogReader(config, schema)
    file = reader.files.files[piece.file]
    fitting = retried(lambda: _read_piece(reader, split, piece), reader.files.shown(file))
    if fitting.rows != piece.rows:
        raise ValueError(f"{reader.files.shown(file)}: changed while it was read; run the command again")
    content = io.BytesIO()
    np.savez(content, **fitting.arrays())  # type: ignore[arg-type]
    replace_file(piece.kept, (content.getbuffer(),))
    return piece


def _read_piece(reader: LogReader, split: SplitName, piece: Piece) -> FittingPass:
    bad_rows = BadRows(reader.config.max_bad_rows)
    fitting = FittingPass(reader.schema, every_table=True)
    file = reader.files.files[piece.file]
    with reader.files.opened(file) as parquet:
        for group in piece.groups:
            for part in reader.parts(file, parquet, group):
                table, columns = reader.wanted(part, reader.of_split(part, split), bad_rows)
                fitting.update(columns, scaled_labels(reader.schema, table))
    return fitting


def _restored(fitting: FittingPass, piece: Piece) -> bool:
    try:
        with piece.kept.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            fitting.restore(dict(arrays))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return False
    return fitting.rows == piece.rows


def _pieces(config: DataConfig, schema: FeedSchema, index: LogIndex, split: SplitName, work: Path) -> list[Piece]:
    # Not min_count, nor sizes of tables: these may be changed, and the counts stay valid.
    counted = [(table.name, table.dtype, table.features) for table in schema.tables]
    fitted = {kind: parts for kind, parts in parts_of(schema).items() if kind != "vocabularies"}
    asked = f"{_FORMAT} {counted} {fitted} {config.bounds.model_dump_json()} {config.max_bad_rows}"
    pieces: list[Piece] = []

    def add(file: int, groups: list[int], rows: int) -> None:
        about = index.files[file]
        digest = xxhash.xxh3_64_hexdigest(f"{asked} {about.name} {about.size} {about.stamp} {groups}".encode())
        pieces.append(Piece(file, tuple(groups), rows, work / f"{split}-{len(pieces):05}-{digest}.npz"))

    file, groups, rows = 0, list[int](), 0
    for group in index.groups(split):
        if groups and (group.file != file or rows + group.rows > PIECE_ROWS):
            add(file, groups, rows)
            groups, rows = [], 0
        file, rows = group.file, rows + group.rows
        groups.append(group.group)
    add(file, groups, rows)
    return pieces


def _fit_all(
    config: DataConfig, schema: FeedSchema, split: SplitName, pieces: list[Piece], processes: int
) -> Iterator[Piece]:
    """Pieces as they are kept."""
    if processes == 1 or len(pieces) < 2:
        for piece in pieces:
            yield fit_piece(config, schema, split, piece)
        return
    # Forked from a process that has imported everything once and has no threads: those do not survive a fork.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(min(processes, len(pieces)), context, belong_to_parent)
    try:
        for future in as_completed([pool.submit(fit_piece, config, schema, split, piece) for piece in pieces]):
            yield future.result()
    except BrokenProcessPool:
        raise ValueError(
            "a worker process ended by itself (out of memory?); what was read is kept: run the command again, with "
            "fewer --processes"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
