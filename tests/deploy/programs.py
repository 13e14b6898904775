"""Real programs that tests start, where this machine has them: Prometheus, HAProxy, Chromium.

In: a name. Out: its path, or a skip with the reason. `.ci/run` installs Debian's packages of the same names.
"""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 120.0


def program(name: str, package: str) -> str:
    """The path of a program. Skips where it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian: {package})")
    return path


def free_port() -> int:
    """A port that was free a moment ago, for a program that must be told one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for(condition: Callable[[], bool], explain: Callable[[], object] = lambda: "") -> None:
    """Ask again and again until `condition` holds, and fails with `explain()` where it never does."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"it never came true: {explain()}"
        time.sleep(0.1)


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A program as a child process, ended on the way out. `log` takes what it says."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
