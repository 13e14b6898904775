"""A real PostgreSQL server on loopback for tests, with a password. Skips where the machine has none."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

USER, PASSWORD = "searcher", "s3cret-{word}"
START_SECONDS = 60


class Server:
    """A server in a folder of its own. `url` is what `--storage` takes."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries, self._folder = binaries, folder
        # The server refuses to run as root.
        self._account = "postgres" if os.geteuid() == 0 else None
        if self._account:
            shutil.chown(folder, self._account, self._account)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port: int = listener.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        secret = folder / "password"
        secret.write_text(PASSWORD, encoding="utf-8")
        if self._account:
            shutil.chown(secret, self._account)
        flags = ["--auth=scram-sha-256", f"--username={USER}", f"--pwfile={secret}", "--encoding=UTF8", "--no-sync"]
        subprocess.run(
            [binaries / "initdb", "--pgdata", folder / "data", "--locale=C", *flags],
            check=True,
            user=self._account,
            group=self._account,
            capture_output=True,
            cwd=folder,
        )

    @property
    def url(self) -> str:
        """The database's URL, with user and password."""
        password = PASSWORD.replace("{", "%7B").replace("}", "%7D")
        return f"postgresql+psycopg://{USER}:{password}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Return when it takes connections."""
        flags: Sequence[str | Path] = ["-h", "127.0.0.1", "-p", str(self.port), "-k", "", "-F"]
        self._process = subprocess.Popen(
            [self._binaries / "postgres", "-D", self._folder / "data", *flags],
            user=self._account,
            group=self._account,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
        )
        give_up = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(self.url.replace("+psycopg", "")).close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, "PostgreSQL did not start"
                assert time.monotonic() < give_up, f"PostgreSQL took more than {START_SECONDS} s to start"
                time.sleep(0.05)

    def stop(self) -> None:
        """Cut all connections, as a machine that is gone does, and return when the server has ended."""
        if self._process is not None:
            self._process.send_signal(3)  # SIGQUIT: an immediate shutdown, recovered from at the next start
            self._process.wait(timeout=60)
            self._process = None


@contextmanager
def postgres() -> Iterator[Server]:
    """A running server until the block ends."""
    found = shutil.which("postgres")
    places = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    binaries = next((place for place in reversed(places) if (place / "initdb").exists()), None)
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (Debian package postgresql)")
    # Not in pytest's own folder, into which no other account can look.
    folder = Path(tempfile.mkdtemp(prefix="feedrank-postgres-"))
    try:
        server = Server(binaries, folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
