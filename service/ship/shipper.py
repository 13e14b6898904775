"""Shipping of the logs of a service: one process of its own for all workers, started and watched by one of them.

In: the folders of the logs and a URL. Out: `python -m service ship --watch` (service/ship/command.py), a new one where
it has died, and metrics of what is shipped, what failed and what waits. The worker that has the lock of the folder
starts it. The process inherits the lock, so that a killed worker's process and a new one never ship together.
"""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from service.base.log import FieldLogger, Throttle
from service.log_files.folder import LogFolder
from service.log_files.shipped import unshipped
from service.metrics.ship_metrics import ShipMetrics
from service.ship.folders import PREFIXES, VARIABLE, locked_folder

Log = Literal["impressions", "events"]
# For the last files, at the end of the service.
DRAIN_SECONDS = 5.0
_POLL_SECONDS = 2.0
_RESTART_SECONDS = 10.0
_ROOT = Path(__file__).resolve().parents[2]
_FLAGS = {"impressions": "--impression-log", "events": "--event-log"}

_log = FieldLogger("ship")


class Shipper:
    """The shipping of one worker's service, if no other worker is at it. `folders` are those of the logs that are
    on."""

    def __init__(self, url: str, folders: dict[Log, Path], metrics: ShipMetrics) -> None:
        self._url = url
        self._folders = {name: folder.resolve() for name, folder in folders.items()}
        self._metrics = metrics
        self._lock: int | None = None
        self._process: subprocess.Popen[str] | None = None
        self._restarts_at = 0.0
        self._is_over = threading.Event()
        self._throttle = Throttle()
        self._thread = threading.Thread(target=self._work, name="ship", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ship what the logs have closed at their end, within DRAIN_SECONDS. The next start ships what is left."""
        self._is_over.set()
        self._thread.join(DRAIN_SECONDS + _POLL_SECONDS)

    def _work(self) -> None:
        self._watch()
        while not self._is_over.wait(_POLL_SECONDS):
            self._watch()
        ends_at = time.monotonic() + DRAIN_SECONDS
        self._restarts_at = 0.0
        # Another worker that ends may have the lock for a moment.
        while not self._is_running() and self._has_waiting() and time.monotonic() < ends_at:
            self._watch()
            time.sleep(0.05)
        self._end(ends_at)

    def _watch(self) -> None:
        """Have the process run, where no other worker has, and measure what waits."""
        try:
            if self._lock is None:
                self._lock = locked_folder(next(iter(self._folders.values())))
            if not self._is_running() and time.monotonic() >= self._restarts_at:
                self._start_process()
            self._measure()
        except BlockingIOError:  # another worker ships
            return
        except OSError as error:
            self._fail(next(iter(self._folders)), error.strerror or str(error))

    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _start_process(self) -> None:
        assert self._lock is not None
        if self._process is not None:
            self._fail(next(iter(self._folders)), f"the process ended with status {self._process.returncode}")
        self._restarts_at = time.monotonic() + _RESTART_SECONDS
        command = [sys.executable, "-m", "service", "ship", "--watch"]
        for name, folder in self._folders.items():
            command += [_FLAGS[name], str(folder)]
        # A session of its own: Ctrl-C is for the service, whose end closes the pipe.
        self._process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env={**os.environ, VARIABLE: self._url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            pass_fds=(self._lock,),
        )
        threading.Thread(target=self._read, args=(self._process,), name="ship-read", daemon=True).start()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                try:
                    message = json.loads(line)
                except ValueError:  # a client of a store that prints
                    continue
                if "failed" in message:
                    self._fail(message["log"], message["failed"])
                else:
                    self._metrics.shipped.labels(message["log"]).inc(message["shipped"])

    def _fail(self, log: str, reason: str) -> None:
        self._metrics.failures.labels(log).inc()
        if self._throttle.is_due():
            _log.warning("closed files of a log are not shipped; they stay and are tried again", log=log, reason=reason)

    def _measure(self) -> None:
        """Set how many files wait, and how long the oldest has."""
        for name, files in self._waiting().items():
            ages = []
            for file in files:
                with suppress(FileNotFoundError):  # it has become Parquet
                    ages.append(time.time() - file.stat().st_mtime)
            self._metrics.unshipped_files.labels(name).set(len(ages))
            self._metrics.unshipped_seconds.labels(name).set(max(ages, default=0.0))

    def _waiting(self) -> dict[Log, list[Path]]:
        logs = {name: LogFolder(folder, PREFIXES[name]) for name, folder in self._folders.items()}
        return {name: unshipped(log.whole_files()) for name, log in logs.items()}

    def _has_waiting(self) -> bool:
        return any(self._waiting().values())

    def _end(self, ends_at: float) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()  # it makes a last pass and ends
            try:
                process.wait(max(0.0, ends_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
