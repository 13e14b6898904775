"""Interface of an engine, from the start of a run to its end, and the sizes that its options name."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)(i?)B", re.IGNORECASE)


class Engine(Protocol):
    """One engine, from the start of a run to its end. Each of its calls raises ValueError where it cannot go on."""

    # They stand in the metadata of the files of hours.
    name: str
    version: str

    def begin(self, files: Mapping[str, Sequence[Path]]) -> None:
        """Read the files of each table, and keep which impression each event belongs to."""

    def rows(self) -> Iterator[pa.RecordBatch]:
        """The rows of the hour, in their order."""

    def counts(self) -> list[tuple[int, int, str, int]]:
        """Last hour of an event's impression, hour of receipt, class, and number of events."""

    def close(self) -> None:
        """End it."""


def bytes_given(text: str) -> int:
    """Bytes of a size such as 512MB or 2GiB. Raises ValueError."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"--memory: expected a size such as 512MB or 2GiB, got {text!r}")
    base = 1024 if found[3] else 1000
    return int(float(found[1]) * base ** " KMGT".index(found[2].upper() or " "))
