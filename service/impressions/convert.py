"""Conversion of closed impression files to Parquet by a process of its own.

In: the folder of a log, from the thread that writes it. Out: `python -m service parquet DIR`, started
where there are lines to convert, one at a time. Arrow never enters the process that serves: its memory, its threads
and its faults stay outside. Where the conversion fails, lines stay lines and the next start tries again.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from service.base.log import FieldLogger, Throttle
from service.impressions.folder import impression_files
from service.log_files.folder import LINES

POLL_SECONDS = 1.0
_REASON_CHARACTERS = 300
_ROOT = Path(__file__).resolve().parents[2]

_log = FieldLogger("impressions")


class Conversion:
    """Conversion of the files of one folder. Not for several threads at a time."""

    def __init__(self, folder: Path, on_failed: Callable[[], None]) -> None:
        self._folder = folder.resolve()
        self._on_failed = on_failed
        self._process: subprocess.Popen[bytes] | None = None
        self._is_asked_again = False
        self._throttle = Throttle()

    def start(self) -> None:
        """Start to convert closed files, unless that is going on."""
        if self._process is not None and self._process.poll() is None:
            self._is_asked_again = True  # it may have looked for the last time
            return
        self._take_end()
        self._is_asked_again = False
        if not impression_files(self._folder).named(LINES):
            return
        command = [sys.executable, "-m", "service", "parquet", str(self._folder)]
        try:
            # A session of its own: Ctrl-C is for the service.
            self._process = subprocess.Popen(
                command,
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            self._fail(f"the process could not be started: {error.strerror}")

    def is_running(self) -> bool:
        """True while a process is converting. Reports the end of one that has ended, and starts the next that is
        wanted."""
        if self._process is not None and self._process.poll() is not None:
            self._take_end()
            if self._is_asked_again:
                self.start()
        return self._process is not None

    def finish(self, seconds: float) -> None:
        """Wait so long for the running process, then end it, which loses nothing."""
        ends_at = time.monotonic() + seconds
        while self.is_running():
            assert self._process is not None
            try:
                self._process.wait(max(0.0, ends_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()
                self._process = None

    def _take_end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stderr is not None
        with process.stderr:
            said = process.stderr.read().decode(errors="replace").strip()
        if process.returncode < 0:
            self._fail(f"the process was ended by signal {-process.returncode}")
        elif process.returncode:
            self._fail(said.rpartition("\n")[-1][:_REASON_CHARACTERS] or f"exit status {process.returncode}")

    def _fail(self, reason: str) -> None:
        self._on_failed()
        if self._throttle.is_due():
            _log.warning("impressions stay lines of JSON", reason=reason)
