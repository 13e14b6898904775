"""The town's services and commands: `python -m service` twice, `python -m training` now and then.

In: the town's files. Out: a service with logs and the town's clock for the loop, a plain one for the models that it is
compared with, and commands that end well or say why they did not.
"""

import json
import os
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep

from deploy.child_processes import ChildError, child, wait_until_ready
from deploy.loop.files import LoopFiles

CLOCK = "FEEDRANK_CLOCK"
_READY_SECONDS = 300.0
_TAIL_LINES = 15
# Of time on the wall: a simulated clock has writers close their files every second.
_LOGS_SECONDS, _POLL_SECONDS = 300.0, 0.1


class Commands:
    """Commands that run one after the other, their output in one file."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def run(self, *module_and_arguments: str) -> None:
        """Run a module to its end. Raises ChildError with its last words."""
        self.status(*module_and_arguments)

    def status(self, *module_and_arguments: str, may: Collection[int] = (0,)) -> int:
        """Run a module to its end and return its exit status. Raises ChildError for one that it may not have, with the
        module's last words."""
        with self._log.open("ab") as output:
            output.write(f"\n$ python -m {' '.join(module_and_arguments)}\n".encode())
            output.flush()
            with child(*module_and_arguments, output=output) as process:
                status = process.wait()
        if status not in may:
            raise ChildError(f"python -m {' '.join(module_and_arguments)}: status {status}\n{self._tail()}")
        return status

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])


@contextmanager
def loop_service(files: LoopFiles) -> Iterator[int]:
    """The loop's service on the port that this gives, with both logs, users' state, keys and the town's clock."""
    flags = ["--models", str(files.models), "--impression-log", str(files.impressions)]
    flags += ["--event-log", str(files.events), "--keys-file", str(files.keys)]
    flags += ["--user-hash-key", str(files.user_hash_key), "--state", files.state]
    # Two services and the town share the machine. A look-up that waits for its turn must not give a default.
    flags += ["--state-timeout-ms", "2000"]
    with _service(flags, files.root / "service.log", {CLOCK: str(files.clock)}) as port:
        yield port


@contextmanager
def reference_service(files: LoopFiles) -> Iterator[int]:
    """The service of the models that the loop is compared with."""
    with _service(["--models", str(files.references)], files.root / "references.log", {}) as port:
        yield port


@contextmanager
def _service(flags: list[str], log: Path, more: Mapping[str, str]) -> Iterator[int]:
    port = _free_port()
    flags = [*flags, "--port", str(port), "--log-level", "warning", "--drain-seconds", "0", "--poll-seconds", "0.5"]
    with (
        log.open("ab") as output,
        child("service", *flags, environment={**os.environ, **more}, output=output) as process,
    ):
        try:
            wait_until_ready(process, f"http://127.0.0.1:{port}", _READY_SECONDS)
        except ChildError as error:
            raise ChildError(f"{error}; its log is {log}") from None
        yield port


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_logs(files: LoopFiles, time: datetime) -> None:
    """Wait until every writer of both logs says that its lines from before a time are in closed files. Raises
    ChildError after a long while."""
    deadline = monotonic() + _LOGS_SECONDS
    while monotonic() < deadline:
        marks = [_marks(folder) for folder in (files.impressions, files.events)]
        if all(mark and min(mark) >= time for mark in marks):
            return
        sleep(_POLL_SECONDS)
    raise ChildError(f"the logs in {files.impressions.parent} are not whole until {time:%Y-%m-%d %H:%M}")


def convert_log(files: LoopFiles, commands: Commands) -> None:
    """Have all of the impression log in Parquet, what the service has not converted yet and what it is converting.
    Raises ChildError after a long while."""
    deadline = monotonic() + _LOGS_SECONDS
    while left := sorted(files.impressions.glob("*.jsonl")):
        if monotonic() > deadline:
            raise ChildError(f"{left[0]} does not become Parquet")
        commands.run("service", "parquet", str(files.impressions))
        sleep(_POLL_SECONDS)


def _marks(folder: Path) -> list[datetime]:
    """The watermarks of a log's writers."""
    found = []
    for path in folder.glob("*.watermark"):
        with suppress(FileNotFoundError):
            found.append(datetime.fromisoformat(json.loads(path.read_text())["watermark"]))
    return found
