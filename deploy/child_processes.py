"""Commands of the project as child processes of a demo: run to their end, or served until they are ready.

In: a module and its arguments. Out: a process that is ended and waited for on the way out, whatever happens.
"""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO

import httpx

READY_SECONDS = 60.0


class ChildError(Exception):
    """Failed step. The step's own output says why."""


@contextmanager
def child(
    *module_and_arguments: str, environment: Mapping[str, str] | None = None, output: IO[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A Python module as a child process, its output in a file where one is given. On the way out it is ended, if it
    has not, and waited for."""
    command = [sys.executable, "-m", *module_and_arguments]
    process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], base: str, seconds: float = READY_SECONDS) -> None:
    """Wait until a service says that it can score. Raises ChildError."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ChildError("the service ended before it was ready")
        try:
            if httpx.get(base + "/readyz", timeout=2.0).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise ChildError(f"the service was not ready within {seconds:.0f} s")
