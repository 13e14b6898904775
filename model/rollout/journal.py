"""Journal of a model: every decision about its versions and days, one JSON object a line.

In: entries from several writers, the daily job and the admin API. Out: `<models>/<name>/journal.jsonl`, which only
grows. An entry is written whole under a lock and on the disk before `append` returns. A line that a killed writer left
in part is closed by the next one. Readers pass over it and count it.
"""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, Field, ValidationError

from model.artifact.artifact import sync
from model.rollout.locks import lock
from model.strict_yaml import StrictModel
from model.untrusted_files import fingerprint_of, open_regular

FILE_NAME = "journal.jsonl"
# An entry is for people: figures and reasons, not data.
MAX_LINE_BYTES = 2**20
_MAX_READ_BYTES = 256 * 2**20
# What the last entries are looked for in.
_TAIL_BYTES = 2**18
_MODE = 0o644


def _utc(time: datetime) -> datetime:
    if time.tzinfo is None:
        raise ValueError("has no time zone; write it in UTC, as in 2026-11-30T02:30:00Z")
    return time.astimezone(UTC)


class Entry(StrictModel):
    """One decision. `step` is the part that decided (judge, data_gate, labels ...), `decision` what it decided.

    `figures` are the numbers behind it, `versions` those it is about and what stood before. `inputs` has the sha256 of
    each file that was read, `who` the job or the name of an admin's key."""

    time: Annotated[datetime, AfterValidator(_utc)]
    step: str = Field(min_length=1, max_length=64)
    decision: str = Field(min_length=1, max_length=64)
    reasons: tuple[str, ...] = ()
    figures: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict)
    who: str

    def line(self) -> bytes:
        """The entry as its line, with the line's end. Raises ValueError for figures that are not finite, and for an
        entry over MAX_LINE_BYTES."""
        document = {
            "time": self.time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            **self.model_dump(exclude={"time"}),
        }
        line = json.dumps(document, allow_nan=False, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"an entry of {len(line)} bytes, at most {MAX_LINE_BYTES} are written")
        return line


@dataclass(frozen=True)
class Content:
    """Entries in the order written. `faults` says of each line that is none where it is and why."""

    entries: tuple[Entry, ...] = ()
    faults: tuple[str, ...] = ()


class Journal:
    """The journal of one model's folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME

    def append(self, entry: Entry) -> None:
        """Write an entry, whole and on the disk. Raises OSError with nothing written, also where another process keeps
        the lock too long, and ValueError for an entry that is too large."""
        line = entry.line()
        with self._locked() as (descriptor, size):
            if size > 0 and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # the part of a line that a killed writer left stays one of its own
            try:
                left = memoryview(line)
                while left:
                    left = left[os.write(descriptor, left) :]
                os.fsync(descriptor)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise
            if size == 0:
                sync(self.path.parent)

    def read(self) -> Content:
        """Every entry. Raises ValueError where the file cannot be read. A file that is not there is empty."""
        return self._content(None)

    def tail(self, most: int) -> Content:
        """The last entries, at most so many, from the end of the file alone. Raises ValueError as `read` does."""
        content = self._content(_TAIL_BYTES)
        return Content(content.entries[-most:], content.faults)

    def _content(self, last_bytes: int | None) -> Content:
        try:
            with open_regular(self.path) as file:
                size = fingerprint_of(file).size_bytes
                if last_bytes is None and size > _MAX_READ_BYTES:
                    raise ValueError(f"{self.path}: {size} bytes, at most {_MAX_READ_BYTES} are read; move it away")
                start = 0 if last_bytes is None else max(0, size - last_bytes)
                file.seek(start)
                content = file.read(size - start)
        except FileNotFoundError:
            return Content()
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be read ({error.strerror})") from None
        # Of a tail the first line may be a part, and its number is not known.
        return _parsed(content, str(self.path), None if start else 1)

    @contextmanager
    def _locked(self) -> Iterator[tuple[int, int]]:
        """The file, open and locked, and its size."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        descriptor = os.open(self.path, flags, _MODE)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(0, "not a regular file", str(self.path))
            lock(descriptor)
            yield descriptor, os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)


def _parsed(content: bytes, place: str, first: int | None) -> Content:
    entries: list[Entry] = []
    faults: list[str] = []
    lines = content.split(b"\n")
    if first is None:
        lines, first = lines[1:], 0
    for number, line in enumerate(lines, first):
        if not line.strip():
            continue
        is_torn = number == first + len(lines) - 1
        where = f"{place}: line {number}" if first else f"{place}: one of its last lines"
        if is_torn:
            faults.append(f"{where}: ends early, its writer was killed or still writes")
        elif isinstance(read := _entry(line), Entry):
            entries.append(read)
        else:
            faults.append(f"{where}: {read}")
    return Content(tuple(entries), tuple(faults))


def _entry(line: bytes) -> Entry | str:
    """The entry of a line, or the reason why it is none."""
    if len(line) > MAX_LINE_BYTES:
        return f"over {MAX_LINE_BYTES} bytes"
    try:
        document = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    if not isinstance(document, Mapping):
        return "not a JSON object"
    try:
        return Entry.model_validate(document)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        return f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg'].removeprefix('Value error, ')}"


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def shown(value: Any) -> str:
    """A figure or a version as text for people."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "none"
    return "none" if value is None else str(value)
