"""Actions of users on explored requests, from the rows that `training join` has written.

In: the folder of joined rows, `date=YYYYMMDD/YYYYMMDDTHH.parquet`, and what a label is worth. Out: the hours that are
there, and the worth of each place of a request that explored. Labels that are null count 0. Every fault is a ValueError
that names the file.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_FILE = re.compile(r"date=(\d{8})/(\1T\d{2})\.parquet")
_OWN = ["_request_id", "_time", "_position", "_propensity"]


class JoinedRewards:
    """Worth of what was done at the places of explored requests. `labels` is the worth of each label's column."""

    def __init__(self, folder: Path, labels: Mapping[str, float]) -> None:
        self._labels = dict(labels)
        # By request and time in milliseconds: worth by place.
        self._worth: dict[tuple[str, int], dict[int, float]] = {}
        self.hours: set[str] = set()
        files = sorted(folder.glob("date=*/*.parquet")) if folder.is_dir() else []
        for path in files:
            match = _FILE.fullmatch(f"{path.parent.name}/{path.name}")
            if match is not None:
                self._read(path)
                self.hours.add(match[2])
        if not self.hours:
            raise ValueError(f"{folder}: no file of an hour here, date=YYYYMMDD/YYYYMMDDTHH.parquet; run join first")

    def has_hour(self, time: datetime) -> bool:
        """True where the hour of a request is joined: then a request without rows is one of which nothing was shown."""
        return f"{time.astimezone(UTC):%Y%m%dT%H}" in self.hours

    def of_request(self, request_id: str, time: datetime) -> dict[int, float]:
        """Worth by place of a request, empty where nothing of it was shown."""
        return self._worth.get((request_id, round(time.timestamp() * 1000)), {})

    def _read(self, path: Path) -> None:
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                held = set(file.schema_arrow.names)
                lacking = [name for name in (*_OWN, *self._labels) if name not in held]
                if lacking:
                    raise ValueError(f"{path}: no column {', '.join(lacking)}; these are not joined rows of this model")
                for batch in file.iter_batches(columns=[*_OWN, *self._labels], use_threads=False):
                    self._add(batch)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: a damaged Parquet file ({error}); join its hour again") from None

    def _add(self, batch: pa.RecordBatch) -> None:
        explored = batch.filter(batch.column("_propensity").is_valid())
        if not explored.num_rows:
            return
        ids = explored.column("_request_id").to_pylist()
        times = explored.column("_time").cast(pa.timestamp("ms", "UTC")).cast(pa.int64()).to_pylist()
        places = explored.column("_position").to_pylist()
        labels = {name: explored.column(name).to_pylist() for name in self._labels}
        for row, key in enumerate(zip(ids, times, strict=True)):
            worth = sum(weight * float(labels[name][row] or 0) for name, weight in self._labels.items())
            self._worth.setdefault(key, {})[places[row]] = worth
