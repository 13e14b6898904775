"""A real Redis server for tests, which can be stopped, paused and started again on its port."""

import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from redis import Redis, exceptions

from tests.deploy.programs import free_port, program, wait_for


class RedisServer:
    """One server. `flags` are its own."""

    def __init__(self, folder: Path, *flags: str, password: str | None = None) -> None:
        self.port = free_port()
        self._path = program("redis-server", "redis-server")
        self._flags = ["--save", "", "--appendonly", "no", "--dir", str(folder), *flags]
        if password is not None:
            self._flags += ["--requirepass", password]
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its URL."""
        user = "" if self._password is None else f":{self._password}@"
        return f"redis://{user}127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        command = [self._path, "--port", str(self.port), "--bind", "127.0.0.1", *self._flags]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for(self._answers)

    def kill(self) -> None:
        """Kill it, with all that it has."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Stop it from answering, connections stay."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with Redis.from_url(self.url) as client:
                return bool(client.ping())
        except exceptions.RedisError:
            return False


@contextmanager
def redis_server(folder: Path, *flags: str, password: str | None = None) -> Iterator[RedisServer]:
    """A server that runs, killed on the way out."""
    server = RedisServer(folder, *flags, password=password)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def no_redis() -> Iterator[str]:
    """The URL of a listener that answers nonsense."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(1000)
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
