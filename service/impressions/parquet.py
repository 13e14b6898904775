"""The impression log as Parquet: a file of JSON lines in, a file of the same rows out, and its rows back.

The one module of the service that imports Arrow: for the process that converts (service/impressions/to_parquet.py) and
for replay, never for one that serves. Columns are those of docs/serving.md. Values and ids, or hashes of them, have
columns of their own, null where a row does not have them. Features stay the JSON text that was logged, as models of one
log ask for different ones. Memory is bounded by the size of a row group.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from service.impressions.record import Candidates, Line, check, decode

# A row group ends with the line that reaches one of them.
GROUP_BYTES = 8 * 2**20
GROUP_ROWS = 8192
_BATCH_ROWS = 64
_HASHES = pa.list_(pa.uint64())
SCHEMA = pa.schema(
    [
        pa.field("time", pa.timestamp("ms", tz="UTC"), nullable=False),
        *(
            pa.field(name, pa.string(), nullable=False)
            for name in ("request_id", "model", "model_version", "value_model", "value_model_version")
        ),
        pa.field("top_k", pa.int64()),
        pa.field("catalogue", pa.bool_(), nullable=False),
        pa.field("user", pa.string()),
        pa.field("candidate_id", pa.list_(pa.string())),
        pa.field("features", pa.string()),
        pa.field("user_hash", pa.uint64()),
        pa.field("candidate_id_hash", _HASHES),
        pa.field("features_hash", _HASHES),
        pa.field("score", pa.list_(pa.float64()), nullable=False),
        pa.field("tasks", pa.map_(pa.string(), pa.list_(pa.float32())), nullable=False),
    ]
)


def write(source: IO[bytes], sink: IO[bytes]) -> None:
    """Write the rows of JSON lines. Raises ValueError naming the line that is none, OSError."""
    with pq.ParquetWriter(sink, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        rows: list[dict[str, Any]] = []
        size = 0
        for number, text in enumerate(source, start=1):
            try:
                rows.append(_row(decode(text)))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            size += len(text)
            if size >= GROUP_BYTES or len(rows) == GROUP_ROWS:
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                rows, size = [], 0
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))


class ParquetImpressions:
    """A Parquet file of the log, its rows as lines. Raises ValueError naming a file that is damaged or is no such."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise self._refusal(error) from None
        if not self._file.schema_arrow.equals(SCHEMA):
            raise ValueError(f"{path}: its columns are not those of an impression log; leave it out")
        self.rows: int = self._file.metadata.num_rows

    def lines(self) -> Iterator[Line]:
        """The lines, in the file's order."""
        try:
            for batch in self._file.iter_batches(_BATCH_ROWS, use_threads=False):
                yield from map(_line, batch.to_pylist(maps_as_pydicts="strict"))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._refusal(error) from None

    def _refusal(self, error: Exception) -> ValueError:
        if isinstance(error, FileNotFoundError):
            return ValueError(f"{self._path}: no such file")
        return ValueError(f"{self._path}: a damaged Parquet file ({error}); leave it out, or restore it")


def _row(line: Line) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(line, name) for name in SCHEMA.names if hasattr(line, name)}
    time = datetime.fromisoformat(line.time)
    if time.tzinfo is None:
        raise ValueError("time: without its zone")
    row |= {"time": time, "user": None, "tasks": list(line.tasks.items())}
    if line.hashes is not None:
        hashes = line.hashes
        row |= {"user_hash": hashes.user, "candidate_id_hash": hashes.candidate_id, "features_hash": hashes.features}
    else:
        assert line.candidates is not None, "checked"
        row |= {
            "user": bytes(line.user).decode(),
            "candidate_id": line.candidates.id,
            "features": bytes(line.candidates.features).decode(),
        }
    return row


def _line(row: dict[str, Any]) -> Line:
    user, ids, features, user_hash, ids_hash, features_hash = (
        row.pop(name)
        for name in ("user", "candidate_id", "features", "user_hash", "candidate_id_hash", "features_hash")
    )
    row["time"] = row["time"].astimezone(UTC).isoformat(timespec="milliseconds")
    if user is None:
        row["hashes"] = {"user": user_hash, "candidate_id": ids_hash, "features": features_hash}
    # Checked as a line is: a column may have nulls, and a file of that name may come from elsewhere.
    line = msgspec.convert({"format": 1, **row}, Line)
    if user is not None:
        ids, features = msgspec.convert((ids, features), tuple[list[str], str])
        line.user, line.candidates = msgspec.Raw(user.encode()), Candidates(ids, msgspec.Raw(features.encode()))
    check(line)
    return line
