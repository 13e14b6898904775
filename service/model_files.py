"""Whether files have changed since they were last looked at."""

from pathlib import Path

Fingerprint = tuple[tuple[str, int, int], ...]


def fingerprint(files: list[Path]) -> Fingerprint:
    """Name, size and time of change of every file that is there."""
    entries = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        entries.append((file.name, status.st_size, status.st_mtime_ns))
    return tuple(entries)
