"""The impression log as Parquet: a file of JSON lines in, a file of the same rows out, and its rows back.

The one module of the service that imports Arrow: for the process that converts (service/impressions/to_parquet.py) and
for replay, never for one that serves. Columns are those of docs/serving.md. Values and ids, or hashes of them, have
columns of their own, null where a row does not have them. Features stay the JSON text that was logged, as models of one
log ask for different ones. Memory is bounded by the size of a row group.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from service.base.clock import rfc3339
from service.impressions.record import Candidates, Line, Loss, check, decode

# A row group ends with the line that reaches one of them.
GROUP_BYTES = 8 * 2**20
GROUP_ROWS = 8192
_BATCH_ROWS = 64
_HASHES = pa.list_(pa.uint64())
_NAMES = pa.map_(pa.string(), pa.string())
_ANSWERS = pa.map_(pa.string(), pa.list_(pa.float32()))
_HEAD = ("request_id", "model", "model_version", "value_model", "value_model_version")
# Of a row that says what is lost, all columns are null but `format`, `time`, `lost` and `reason`.
SCHEMA = pa.schema(
    [
        pa.field("format", pa.int8(), nullable=False),
        pa.field("time", pa.timestamp("ms", tz="UTC"), nullable=False),
        *(pa.field(name, pa.string()) for name in _HEAD),
        *(pa.field(name, pa.string()) for name in ("calibration", "policy", "policy_version")),
        pa.field("experiments", _NAMES),
        pa.field("epochs", _NAMES),
        pa.field("fell_back", pa.list_(pa.string())),
        pa.field("user_hash", pa.string()),
        pa.field("share", pa.float64()),
        pa.field("top_k", pa.int64()),
        pa.field("catalogue", pa.string()),
        pa.field("user", pa.string()),
        pa.field("candidate_id", pa.list_(pa.string())),
        pa.field("features", pa.string()),
        pa.field("histories", pa.string()),
        pa.field("user_features_hash", pa.uint64()),
        pa.field("candidate_id_hash", _HASHES),
        pa.field("features_hash", _HASHES),
        pa.field("score", pa.list_(pa.float64())),
        pa.field("tasks", _ANSWERS),
        pa.field("raw", _ANSWERS),
        pa.field("order", pa.list_(pa.int32())),
        pa.field("propensity", pa.list_(pa.float64())),
        pa.field("lost", pa.int64()),
        pa.field("reason", pa.string()),
    ]
)
# Files of lines of format 1, whose `user_hash` is of the user's features.
SCHEMA_1 = pa.schema(
    [
        pa.field("time", pa.timestamp("ms", tz="UTC"), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in _HEAD),
        pa.field("top_k", pa.int64()),
        pa.field("catalogue", pa.bool_(), nullable=False),
        pa.field("user", pa.string()),
        pa.field("candidate_id", pa.list_(pa.string())),
        pa.field("features", pa.string()),
        pa.field("user_hash", pa.uint64()),
        pa.field("candidate_id_hash", _HASHES),
        pa.field("features_hash", _HASHES),
        pa.field("score", pa.list_(pa.float64()), nullable=False),
        pa.field("tasks", _ANSWERS, nullable=False),
    ]
)
# The generation of a line of format 1, which says no more than that there was one.
_SOME_GENERATION = "?"

_histories_encoder = msgspec.json.Encoder()
_histories_decoder = msgspec.json.Decoder()


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
    """A Parquet file of the log, its rows as lines. Raises ValueError naming a file that is damaged or is no such, and
    FileNotFoundError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.size_bytes = path.stat().st_size
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise self._refusal(error) from None
        schema = self._file.schema_arrow
        self._is_first = schema.equals(SCHEMA_1)
        if not self._is_first and not schema.equals(SCHEMA):
            raise ValueError(f"{path}: its columns are not those of an impression log; leave it out")
        self.rows: int = self._file.metadata.num_rows

    def lines(self) -> Iterator[Line | Loss]:
        """The lines, in the file's order."""
        yield from self._lines(range(self._file.num_row_groups))

    def lines_backwards(self) -> Iterator[Line | Loss]:
        """The lines, the last one first."""
        for group in reversed(range(self._file.num_row_groups)):
            yield from reversed(list(self._lines([group])))

    def _lines(self, groups: Sequence[int]) -> Iterator[Line | Loss]:
        line_of = _first_line if self._is_first else _line
        try:
            for batch in self._file.iter_batches(_BATCH_ROWS, row_groups=groups, use_threads=False):
                yield from map(line_of, batch.to_pylist(maps_as_pydicts="strict"))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._refusal(error) from None

    def _refusal(self, error: Exception) -> ValueError:
        return ValueError(f"{self._path}: a damaged Parquet file ({error}); leave it out, or restore it")


def _row(line: Line | Loss) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(line, name) for name in SCHEMA.names if hasattr(line, name)}
    row["time"] = time = datetime.fromisoformat(line.time)
    if time.tzinfo is None:
        raise ValueError("time: without its zone")
    if isinstance(line, Loss):
        return row
    maps: tuple[dict[str, Any] | None, ...] = (line.experiments, line.epochs, line.tasks, line.raw)
    for name, values in zip(("experiments", "epochs", "tasks", "raw"), maps, strict=True):
        row[name] = None if values is None else list(values.items())
    row["user"] = None
    row["histories"] = None if line.histories is None else _histories_encoder.encode(line.histories).decode()
    if isinstance(line.catalogue, bool):
        row["catalogue"] = _SOME_GENERATION if line.catalogue else None
    if line.hashes is not None:
        hashes = line.hashes
        row["user_features_hash"] = hashes.user
        row |= {"candidate_id_hash": hashes.candidate_id, "features_hash": hashes.features}
    else:
        assert line.candidates is not None, "checked"
        row |= {
            "user": bytes(line.user).decode(),
            "candidate_id": line.candidates.id,
            "features": bytes(line.candidates.features).decode(),
        }
    return row


def _first_line(row: dict[str, Any]) -> Line | Loss:
    row["user_features_hash"] = row.pop("user_hash")
    return _line({"format": 1, "lost": None, "reason": None, **row})


def _line(row: dict[str, Any]) -> Line | Loss:
    row["time"] = rfc3339(row["time"].astimezone(UTC))
    hashes = {
        name: row.pop(column)
        for name, column in (
            ("user", "user_features_hash"),
            ("candidate_id", "candidate_id_hash"),
            ("features", "features_hash"),
        )
    }
    user, ids, features, lost, reason = (
        row.pop(name) for name in ("user", "candidate_id", "features", "lost", "reason")
    )
    if lost is not None:
        return msgspec.convert({"format": row["format"], "time": row["time"], "lost": lost, "reason": reason}, Loss)
    if user is None:
        row["hashes"] = hashes
    if row.get("histories") is not None:
        row["histories"] = _histories_decoder.decode(row["histories"])
    # Checked as a line is: a column may have nulls, and a file of that name may come from elsewhere.
    line = msgspec.convert(row, Line)
    if user is not None:
        ids, features = msgspec.convert((ids, features), tuple[list[str], str])
        line.user, line.candidates = msgspec.Raw(user.encode()), Candidates(ids, msgspec.Raw(features.encode()))
    check(line)
    return line
