"""Joined rows hour by hour, as `training join` writes them: date=YYYYMMDD/YYYYMMDDTHH.parquet, with own columns `_...`.

In: a folder on any fsspec path, from which hour. Out: one Arrow table an hour, its own columns in the types that they
are written in. A column that an hour does not have is null in it. Every fault is a ValueError that names the file.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from training.columns import plain
from training.data.files import LogFile, LogFiles
from training.data.retries import retried

USER, TIME, VERSION, REQUEST, WEIGHT = "_user", "_time", "_model_version", "_request_id", "_weight"
ARMS, EPOCHS, FELL_BACK = "_experiments", "_epochs", "_fell_back"
HOUR = timedelta(hours=1)
# Own columns that are read here, and their types.
_OWN = {
    USER: pa.string(),
    TIME: pa.timestamp("ms", "UTC"),
    VERSION: pa.string(),
    REQUEST: pa.string(),
    WEIGHT: pa.float64(),
    ARMS: pa.string(),
    EPOCHS: pa.string(),
    FELL_BACK: pa.string(),
}
_FILE = re.compile(r"date=(\d{8})/(\1T\d{2})\.parquet")


class JoinedHours:
    """Hours of a joined folder from `since` to the first gap, or all that are there. Raises ValueError without any."""

    def __init__(self, folder: Path | str, since: datetime | None = None) -> None:
        self._files = LogFiles(folder)
        self._hours: dict[datetime, LogFile]
        hours = {_hour(file): file for file in self._files.files if _FILE.fullmatch(file.name)}
        if not hours:
            raise ValueError(f"{folder}: no file of an hour here, date=YYYYMMDD/YYYYMMDDTHH.parquet; run join first")
        if since is None:
            self._hours = dict(sorted(hours.items()))
            self.first = min(hours)
            self.until = max(hours) + HOUR
            return
        first = since.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        # A gap ends what is known: the hour that is missing may have what users did.
        self._hours = {}
        while first in hours:
            self._hours[first] = hours[first]
            first += HOUR
        # All that happened before it is there, since the first that is joined.
        self.first, self.until = min(hours), first

    def __len__(self) -> int:
        return len(self._hours)

    def require(self, names: Sequence[str]) -> None:
        """Raise ValueError where the last hour lacks a column that every join writes."""
        file = next(reversed(self._hours.values()))
        with self._files.opened(file) as parquet:
            held = set(parquet.schema_arrow.names)
        lacking = [name for name in names if name not in held]
        if lacking:
            raise ValueError(f"{self._files.shown(file)}: no column {', '.join(lacking)}; these are not rows of a join")

    def tables(self, names: Sequence[str], since: datetime | None = None) -> Iterator[tuple[datetime, pa.Table]]:
        """Each hour, or each since a time, with the columns `names`."""
        for hour, file in self._hours.items():
            if since is None or hour >= since:
                yield hour, self._read(file, names)

    def _read(self, file: LogFile, names: Sequence[str]) -> pa.Table:
        def read() -> pa.Table:
            with self._files.opened(file) as parquet:
                held = set(parquet.schema_arrow.names)
                return parquet.read(columns=[name for name in names if name in held])

        table = retried(read, self._files.shown(file))
        columns = {}
        for name in names:
            if name not in table.column_names:
                columns[name] = pa.chunked_array([pa.nulls(table.num_rows, _OWN.get(name, pa.null()))])
                continue
            column = plain(table.column(name))
            try:
                columns[name] = column.cast(_OWN[name]) if name in _OWN else column
            except pa.ArrowException:
                raise ValueError(
                    f"{self._files.shown(file)}: column '{name}' is {column.type}, and the join writes {_OWN[name]}"
                ) from None
        return pa.table(columns)


def _hour(file: LogFile) -> datetime:
    match = _FILE.fullmatch(file.name)
    assert match is not None, "only files of hours are asked"
    try:
        return datetime.strptime(match[2], "%Y%m%dT%H").replace(tzinfo=UTC)
    except ValueError:
        raise ValueError(f"{file.path}: is named as an hour that no day has") from None
