"""Files of metrics that workers share, on a disk that may be full: samples are kept in memory then, and nothing ends.

prometheus_client maps files whose blocks are not allocated, so that the first write to one on a full disk ends the
process by SIGBUS, and the worker that replaces it as well. Here blocks are allocated before they are mapped. What finds
no room is kept in memory, and in no scrape, until there is some.
"""

import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import values
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import mark_process_dead

from service.base.log import FieldLogger

_INITIAL_BYTES = 2**16
_RETRY_SECONDS = 5.0
# Of an entry of the file beside its key: its length, padding, value and time.
_ENTRY_BYTES = 4 + 8 + 16

_log = FieldLogger("metrics")


class AllocatedDict(MmapedDict):
    """One file, or one in memory, whose blocks are all allocated."""

    def __init__(self, path: Path) -> None:
        """Raise OSError where there is no room for it."""
        if not path.exists():
            # Under its name it is never empty: a scrape may read it at any time.
            with _made(path.with_suffix(".new")) as file:
                os.posix_fallocate(file, 0, _INITIAL_BYTES)
            path.with_suffix(".new").rename(path)
        else:
            with path.open("r+b") as existing:
                os.posix_fallocate(existing.fileno(), 0, max(_INITIAL_BYTES, path.stat().st_size))
        super().__init__(str(path))  # type: ignore[no-untyped-call]

    def __contains__(self, key: str) -> bool:
        return key in self._positions

    def make_room(self, key: str) -> None:
        """Allocates what a new key needs. Raises OSError where that is not there."""
        needed = self._used + len(key.encode()) + _ENTRY_BYTES
        capacity = self._capacity
        while needed > capacity:
            capacity *= 2
        if capacity > self._capacity:
            os.posix_fallocate(self._f.fileno(), 0, capacity)
            self._m = mmap.mmap(self._f.fileno(), capacity)
            self._capacity = capacity


class RoomyDict:
    """The samples of one kind of a worker, in the place of prometheus_client's MmapedDict, which this is used as."""

    def __init__(self, filename: str) -> None:
        self._path = Path(filename)
        self._shared: AllocatedDict | None = None
        self._own: dict[str, tuple[float, float]] = {}
        self._try_at = 0.0

    def read_value(self, key: str) -> tuple[float, float]:
        """Value and time of a key, made where it is not there."""
        shared = self._shared_of(key)
        if shared is None:
            return self._own.setdefault(key, (0.0, 0.0))
        found: tuple[float, float] = shared.read_value(key)  # type: ignore[no-untyped-call]
        return found

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        """Sets value and time of a key."""
        shared = self._shared_of(key)
        if shared is None:
            self._own[key] = (value, timestamp)
        else:
            shared.write_value(key, value, timestamp)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Release the file."""
        if self._shared is not None:
            self._shared.close()  # type: ignore[no-untyped-call]

    def _shared_of(self, key: str) -> AllocatedDict | None:
        """The file that has a key or room for it. None where it has to stay in memory."""
        has_place = self._shared is not None and key in self._shared
        if (self._own or not has_place) and time.monotonic() >= self._try_at:
            has_place = self._make_room(key) or has_place
        return self._shared if has_place else None

    def _make_room(self, key: str) -> bool:
        """Move what waits in memory into the file, and make room for `key`. True where that was there for all."""
        try:
            if self._shared is None:
                self._shared = AllocatedDict(self._path)
            for waiting in list(self._own):
                self._shared.make_room(waiting)
                self._shared.write_value(waiting, *self._own.pop(waiting))  # type: ignore[no-untyped-call]
            self._shared.make_room(key)
        except OSError as error:
            if not self._try_at:
                _log.error(
                    "no room for metrics: samples of this worker are not in /metrics",
                    file=self._path.name,
                    reason=error.strerror,
                )
            self._try_at = time.monotonic() + _RETRY_SECONDS
            return False
        if self._try_at:
            self._try_at = 0.0
            _log.info("room for metrics again", file=self._path.name)
        return True


def use_allocated_files() -> None:
    """Back metrics that are made from now on by such files."""
    values.MmapedDict = RoomyDict  # type: ignore[attr-defined, assignment]


def free_bytes(folder: Path | None) -> GaugeMetricFamily:
    """The room that is left for the files of `folder`. No sample without one."""
    family = GaugeMetricFamily(
        "ranking_metrics_folder_free_bytes", "Room for the files of metrics that workers share, with several workers"
    )
    if folder is not None:
        room = os.statvfs(folder)
        family.add_metric([], room.f_bavail * room.f_frsize)
    return family


@contextmanager
def _made(path: Path) -> Iterator[int]:
    """A new file, removed again where the block fails."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(descriptor)


def forget_dead_workers(folder: Path) -> None:
    """Drop the gauges of workers that were killed: no process is left to set them to 0. Their counters stay."""
    for file in folder.glob("gauge_live*_*.db"):
        worker = int(file.stem.rpartition("_")[2])
        if not Path(f"/proc/{worker}").exists():
            mark_process_dead(worker, str(folder))  # type: ignore[no-untyped-call]
