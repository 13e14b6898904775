"""A real service: `python -m service` in a process of its own, on a port that the system chose.

In: a models folder and flags. Out: an HTTP client for it, its log lines, its exit status.
"""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 90.0  # importing torch on a busy machine takes most of it
_ADDRESS = re.compile(r"Uvicorn running on (https?://[0-9a-f.:\[\]]+:[0-9]+)")


class RunningService:
    """Use as a context manager. On leaving, what still runs is killed."""

    def __init__(self, models: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "service", "--models", str(models), "--port", "0"]
        command += ["--poll-seconds", "0.1", "--drain-seconds", "0"]
        # A session of its own, so that a test can do what Ctrl-C in a terminal does: signal the whole group.
        self.process = subprocess.Popen(
            [*command, *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.log: list[str] = []
        self.reads = threading.Event()  # its log. Cleared, this reader stops as one that hangs does
        self.reads.set()
        self._has_address = threading.Event()
        self._address = ""
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        if not self._has_address.wait(START_SECONDS) or not self._address:
            self.end()
            raise AssertionError("the service did not start:\n" + "\n".join(self.log))
        self.client = httpx.Client(base_url=self._address, timeout=30, trust_env=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.client.close()
        self.end()

    def wait_ready(self) -> Self:
        """Wait until the service says that it can score."""
        self.wait_for(lambda: self._answers("/readyz"))
        return self

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Try again and again until `condition` is true. Fails with the service's log where it never is."""
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            assert self.process.poll() is None, "the service ended:\n" + "\n".join(self.log)
            assert time.monotonic() < deadline, "it never came true:\n" + "\n".join(self.log)
            time.sleep(0.02)

    def stop(self, number: signal.Signals) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end and return the exit status."""
        status = self.process.wait(timeout=START_SECONDS)
        self._reader.join()
        return status

    def workers(self) -> set[int]:
        """The processes of several workers that are alive. Uvicorn's children are these and a resource tracker."""
        found = set()
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):  # it has just ended
                if "spawn_main" in " ".join(child.cmdline()):
                    found.add(child.pid)
        return found

    def wait_workers(self, number: int, *, besides: Iterable[int] = ()) -> Self:
        """Wait until the supervisor knows of so many workers that serve, `besides` left out."""
        self.wait_for(lambda: len(self._serving() & self.workers() - set(besides)) == number)
        return self

    def _serving(self) -> set[int]:
        return {line["pid"] for line in self.log_lines("feedrank.workers") if line["message"] == "worker serves"}

    def log_lines(self, logger: str) -> list[dict[str, Any]]:
        """The parsed log lines of one logger. A line that is not JSON is a fault."""
        lines: list[dict[str, Any]] = [json.loads(line) for line in list(self.log)]
        return [line for line in lines if line["logger"] == logger]

    def _answers(self, path: str) -> bool:
        try:
            return self.client.get(path).status_code == 200
        except httpx.TransportError:
            return False

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))
            found = _ADDRESS.search(line)
            if found is not None:
                self._address = found.group(1)
                self._has_address.set()
            self.reads.wait()
        self._has_address.set()

    def end(self) -> None:
        """End the process, if need be by force."""
        self.reads.set()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
