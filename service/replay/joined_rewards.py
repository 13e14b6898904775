"""Actions of users on explored requests, from the rows that `training join` has written.

In: the folder of joined rows on any fsspec path, `date=YYYYMMDD/YYYYMMDDTHH.parquet`, and what labels are worth. Out:
the hours that are there, and the worth of each place of a request that explored. Labels that are null count 0. Every
fault is a ValueError that names the file.

Shapes: B rows of a batch.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from model.untrusted_files import open_regular

_FILE = re.compile(r"date=(\d{8})/(\1T\d{2})\.parquet")
_OWN = ["_request_id", "_time", "_position", "_propensity"]


class LabelWorth(NamedTuple):
    """Worth of a label: `weight` times a number, or of a class what `by_class` has for it."""

    weight: float
    by_class: Mapping[str, float] | None = None

    def of(self, label: Any) -> float:
        """Worth of a value, 0 of a null. Raises ValueError for one that is no number and no class."""
        if label is None:
            return 0.0
        return self.weight * float(label) if self.by_class is None else self.by_class.get(str(label), 0.0)


class JoinedRewards:
    """Worth of what was done at the places of explored requests. `labels` is the worth of each label's column."""

    def __init__(self, folder: str, labels: Mapping[str, LabelWorth]) -> None:
        self._labels = dict(labels)
        # By request and time in milliseconds: worth by place.
        self._worth: dict[tuple[str, int], dict[int, float]] = {}
        self.hours: set[str] = set()
        try:
            self._system, root = fsspec.url_to_fs(folder)
            found = sorted(self._system.find(root))
        except Exception as error:  # beside OSError each cloud's client has errors of its own
            raise ValueError(f"{folder}: cannot be listed ({error})") from None
        for path in found:
            match = _FILE.fullmatch("/".join(path.split("/")[-2:]))
            if match is not None:
                self._read(path, f"{folder.rstrip('/')}/{match[0]}")
                self.hours.add(match[2])
        if not self.hours:
            raise ValueError(f"{folder}: no file of an hour here, date=YYYYMMDD/YYYYMMDDTHH.parquet; run join first")

    def has_hour(self, time: datetime) -> bool:
        """True where the hour of a request is joined: then a request without rows is one of which nothing was shown."""
        return f"{time.astimezone(UTC):%Y%m%dT%H}" in self.hours

    def of_request(self, request_id: str, time: datetime) -> dict[int, float]:
        """Worth by place of a request, empty where nothing of it was shown."""
        return self._worth.get((request_id, round(time.timestamp() * 1000)), {})

    def _read(self, path: str, place: str) -> None:
        try:
            with (
                self._opened(path) as source,
                pq.ParquetFile(source, page_checksum_verification=True) as file,
            ):
                held = set(file.schema_arrow.names)
                lacking = [name for name in (*_OWN, *self._labels) if name not in held]
                if lacking:
                    names = ", ".join(lacking)
                    raise ValueError(f"{place}: no column {names}; these are not joined rows of this model")
                for batch in file.iter_batches(columns=[*_OWN, *self._labels], use_threads=False):
                    self._add(batch, place)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{place}: a damaged Parquet file ({error}); join its hour again") from None

    def _opened(self, path: str) -> Any:
        is_local = isinstance(self._system, LocalFileSystem)
        return open_regular(Path(path)) if is_local else self._system.open(path, "rb")

    def _add(self, batch: pa.RecordBatch, place: str) -> None:
        is_placed = pc.fill_null(pc.greater_equal(batch.column("_position"), 0), fill_value=False)
        explored = batch.filter(pc.and_(batch.column("_propensity").is_valid(), is_placed))
        if not explored.num_rows:
            return
        ids = explored.column("_request_id").to_pylist()
        times = explored.column("_time").cast(pa.timestamp("ms", "UTC")).cast(pa.int64()).to_pylist()
        places = explored.column("_position").to_pylist()
        worth_B = [0.0] * explored.num_rows
        for name, worth in self._labels.items():
            for row, label in enumerate(explored.column(name).to_pylist()):
                try:
                    worth_B[row] += worth.of(label)
                except (TypeError, ValueError):
                    kind = explored.schema.field(name).type
                    raise ValueError(f"{place}: column '{name}' is {kind}, and its task's label is a number") from None
        for key, at, worth_of_row in zip(zip(ids, times, strict=True), places, worth_B, strict=True):
            self._worth.setdefault(key, {})[at] = worth_of_row
