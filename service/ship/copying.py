"""One pass of shipping a log: closed files are copied, then the watermarks of their writers.

In: the folder of a log, and its destination. Out: copies, oldest first, each marked once it is whole there. Watermarks
are read before files are listed and written after these are copied: at the destination too, all lines from before a
watermark are in files that are there. A pass that is killed is begun again: a copy that is whole there is found by its
name, and no line is there twice.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from model.untrusted_files import read_bytes
from service.log_files.folder import LINES, PARQUET, LogFolder
from service.log_files.shipped import SUFFIX, mark_of, unshipped
from service.log_files.watermark import SUFFIX as WATERMARK
from service.ship.destination import Destination

# So long a file of lines waits to become Parquet, which is a tenth of it.
CONVERSION_SECONDS = 120.0
_PUBLISHED = ".published"


class Copying:
    """Passes over the files of one log. `is_converted` says that its lines become Parquet. `on_shipped` is called for
    each file."""

    def __init__(
        self, log: LogFolder, destination: Destination, *, is_converted: bool, on_shipped: Callable[[], None]
    ) -> None:
        self._log = log
        self._destination = destination
        self._is_converted = is_converted
        self._on_shipped = on_shipped
        # Those that were there at the first pass may have been copied by one that was killed before it marked them.
        self._is_first = True
        self._published: dict[str, bytes] = {}

    def ship(self, *, is_last: bool = False) -> None:
        """Copy what is new. In the last pass nothing waits to become Parquet. Raises OSError, and what the client of
        the destination raises."""
        watermarks = self._watermarks()
        # A list: every file is tried, whether others wait or not.
        are_there = [
            self._ship(file)
            for file in unshipped(self._log.whole_files())
            if is_last or not self._waits_for_parquet(file)
        ]
        self._is_first = False
        if all(are_there) and (is_last or not unshipped(self._log.whole_files())):
            self._publish(watermarks)
        self._forget_marks()

    def _watermarks(self) -> dict[str, bytes]:
        """Contents of the watermarks by their names."""
        found = {}
        for file in self._log.path.glob(f"{self._log.prefix}*{WATERMARK}"):
            with suppress(FileNotFoundError):  # its writer has ended
                found[file.name] = read_bytes(file)
        return found

    def _waits_for_parquet(self, file: Path) -> bool:
        if not self._is_converted or file.suffix != LINES:
            return False
        try:
            return 0 <= time.time() - file.stat().st_mtime < CONVERSION_SECONDS
        except FileNotFoundError:  # it is Parquet by now
            return True

    def _ship(self, file: Path) -> bool:
        """Copy a file and mark it. False where it has become Parquet meanwhile."""
        kinds = (file.name, file.with_suffix(LINES if file.suffix == PARQUET else PARQUET).name)
        copied = next(filter(self._destination.has, kinds), None) if self._is_first else None
        if copied is not None:
            self._destination.remove_part(copied)
        else:
            try:
                self._destination.copy(file)
            except FileNotFoundError:
                if file.exists():
                    raise
                return False
            self._on_shipped()
        mark_of(file).touch(0o600)
        return True

    def _publish(self, watermarks: dict[str, bytes]) -> None:
        """Write the watermarks to the destination, and remove those of writers that are gone."""
        folder = self._log.path
        for name, content in watermarks.items():
            if self._published.get(name) != content:
                # Before it is there: a pass that is killed in between leaves what the next one removes.
                (folder / f".{name}{_PUBLISHED}").touch(0o600)
                self._destination.write(name, content)
                self._published[name] = content
        for mark in folder.glob(f".{self._log.prefix}*{WATERMARK}{_PUBLISHED}"):
            name = mark.name.removeprefix(".").removesuffix(_PUBLISHED)
            if name not in watermarks:
                self._destination.remove(name)
                self._published.pop(name, None)
                mark.unlink()

    def _forget_marks(self) -> None:
        """Remove the marks of files that somebody has removed."""
        for mark in self._log.path.glob(f".{self._log.prefix}*{SUFFIX}"):
            whole = mark.with_name(mark.name.removeprefix(".").removesuffix(SUFFIX) + LINES)
            if not whole.exists() and not whole.with_suffix(PARQUET).exists():
                mark.unlink(missing_ok=True)
