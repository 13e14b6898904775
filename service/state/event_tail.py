"""The event log as it grows: lines of closed files and of those that are being written, from saved offsets on.

In: the folder of a log, and how far each of its files was read. Out: whole lines that came since. A line may be read
twice: where a file is not what its offset was of, it is read from its beginning. So who takes lines must be able to
take one again.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from service.log_files.folder import LINES, LogFolder, closed_name


class Tail(NamedTuple):
    """Lines that came, how far every file of the folder is read with them, and how many bytes of each are left."""

    lines: list[bytes]
    offsets: dict[str, int]
    left: dict[str, int]


def read_tail(log: LogFolder, offsets: dict[str, int], most_bytes: int) -> Tail:
    """Whole lines after the offsets, together about `most_bytes`, oldest file first. Raises OSError."""
    # Open ones first: one that is closed meanwhile is among the closed ones.
    files = {whole.stem: part for part in log.open_files() if (whole := closed_name(part)) is not None}
    files |= {file.stem: file for file in log.named(LINES)}
    tail = Tail([], {}, {})
    most_left = most_bytes
    for stem in sorted(files):
        offset = tail.offsets[stem] = offsets.get(stem, 0)
        tail.left[stem] = 0
        with suppress(FileNotFoundError):  # it has just been closed, or removed
            size = files[stem].stat().st_size
            tail.left[stem] = max(0, size - offset)
            if size == offset or most_left <= 0:
                continue
            content, offset = _read(files[stem], offset, most_left)
            end = content.rfind(b"\n") + 1
            tail.lines.extend(content[:end].splitlines())
            tail.offsets[stem] = offset + end
            tail.left[stem] = max(0, size - tail.offsets[stem])
            most_left -= end
    return tail


def _read(file: Path, offset: int, most_bytes: int) -> tuple[bytes, int]:
    """Bytes of a file from an offset on, which is 0 where no line ends at the given one."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if offset and os.pread(descriptor, 1, offset - 1) != b"\n":
            offset = 0
        return os.pread(descriptor, most_bytes, offset), offset
    finally:
        os.close(descriptor)
