"""Services as processes of their own and the process that loads them: what the benchmark of serving measures with.

In: commands, blocks of load. Out: CPU seconds of a server from /proc, threads and children included, and what the load
generator saw. Servers share one core and the load generator has the others, so a service that spreads its work over
cores gains nothing here and contention for a core is the same for all. Nothing outlives its `with` block.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from benchmarks.load_generator import Block, Load
from deploy.local_cpu import Cpu, spent_by

START_SECONDS = 120.0
STOP_SECONDS = 15.0
_CORES = sorted(os.sched_getaffinity(0))
SERVER_CORES = set(_CORES[:1])
CLIENT_CORES = set(_CORES[1:] or _CORES)


@dataclass(frozen=True)
class Server:
    """A running service: its port on loopback, its process."""

    port: int
    pid: int

    @property
    def url(self) -> str:
        """URL of the server."""
        return f"http://127.0.0.1:{self.port}"

    def cpu(self) -> Cpu:
        """CPU seconds of its threads, and of those of all its children, so far. Raises RuntimeError if the process is
        gone."""
        return spent_by([self.pid])


class LoadGenerator:
    """A running load generator."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def __call__(self, block: Block) -> Load:
        """Outcome of a block. Raises RuntimeError where a request was refused or the server failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(asdict(block)), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline() or '{"error": "the load generator ended"}')
        if "error" in answer:
            raise RuntimeError(f"port {block.port}, {block.path}: {answer['error']}")
        return Load(**answer)


@contextmanager
def load_generator() -> Iterator[LoadGenerator]:
    """The load generator's process until the block ends."""
    command = [sys.executable, "-m", "benchmarks.load_generator"]
    with (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as process,
        _ended(process),
    ):
        os.sched_setaffinity(process.pid, CLIENT_CORES)
        yield LoadGenerator(process)


@contextmanager
def serve(
    command: Sequence[str],
    ready: str,
    port: int,
    log: Path,
    cores: Set[int],
    folder: Path | None = None,
    **environment: str,
) -> Iterator[Server]:
    """A server process on `cores`, in `folder` or here, until the block ends. `log` takes what it prints. Raises
    RuntimeError if it does not start."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "FEEDRANK_DRAIN_SECONDS": "0", **environment}
    with (
        log.open("w", encoding="utf-8") as output,
        # A session of its own: Ctrl-C reaches this program alone, which then ends its servers in order.
        subprocess.Popen(
            command, cwd=folder, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
        _ended(process),
    ):
        os.sched_setaffinity(process.pid, cores)
        _wait(f"http://127.0.0.1:{port}{ready}", process, log)
        yield Server(port, process.pid)


@contextmanager
def _ended(process: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up and process.poll() is None:
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise RuntimeError(f"{process.args!r} was not ready within {START_SECONDS:g} s; it said:\n{said}")


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
