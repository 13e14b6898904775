"""Shipping to an S3 store: moto's server, the client that `--ship s3://` takes, and plain HTTP to see what is there.

`make test-ship` makes the environment of both. Elsewhere its tests skip.
"""

import hashlib
import json
import os
import random
import secrets
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from service.log_files.shipped import mark_of
from tests.deploy.programs import free_port, running, wait_for
from tests.service.running import ROOT

PYTHON = ROOT / ".venv-s3" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="needs .venv-s3, which `make test-ship` makes")
WAIT_SECONDS = 120.0
BUCKET = "feed"
KEYS = "{http://s3.amazonaws.com/doc/2006-03-01/}Key"

# The store reads no signature, but without one objects are private.
_ANYBODY = {"Authorization": "AWS anybody:unsigned"}


@dataclass
class Store:
    """A running store, seen without any client of S3. `said` is all that processes of ours wrote."""

    url: str
    secrets: dict[str, str]
    ship: str = f"s3://{BUCKET}/logs"
    said: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """Settings of a process that ships."""
        return {
            **os.environ,
            **self.secrets,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_DEFAULT_REGION": "eu-north-1",
            "AWS_MAX_ATTEMPTS": "1",
            "FEEDRANK_SHIP": self.ship,
        }

    def names(self) -> set[str]:
        """Names below the folder of events."""
        listed = httpx.get(f"{self.url}/{BUCKET}", params={"list-type": "2"}, trust_env=False).raise_for_status()
        found = {str(key.text) for key in ElementTree.fromstring(listed.text).iter(KEYS)}
        assert all(name.startswith("logs/events/") for name in found)
        return {name.removeprefix("logs/events/") for name in found}

    def content(self, name: str) -> bytes:
        """Bytes of a file of events."""
        url = f"{self.url}/{BUCKET}/logs/events/{name}"
        return httpx.get(url, headers=_ANYBODY, trust_env=False).raise_for_status().content

    def begin_shipping(self, folder: Path) -> "subprocess.Popen[str]":
        """A process that makes one pass."""
        command = [str(PYTHON), "-m", "service", "ship", "--event-log", str(folder)]
        return subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def ended(self, process: "subprocess.Popen[str]") -> str:
        """What an ending process said."""
        said, _ = process.communicate(timeout=WAIT_SECONDS)
        self.said += said
        return said


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    port = free_port()
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    store = Store(f"http://127.0.0.1:{port}", {name: secrets.token_hex(16) for name in names})
    command = [str(PYTHON), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]

    def has_bucket() -> bool:
        try:
            return httpx.put(f"{store.url}/{BUCKET}", trust_env=False).is_success
        except httpx.TransportError:
            return False

    log = tmp_path / "moto.log"
    with running(command, log) as server:
        wait_for(lambda: has_bucket() or server.poll() is not None, log.read_text)
        yield store
    assert not [name for name, secret in store.secrets.items() if secret in store.said]


def write_logs(folder: Path, files: int, size: int) -> dict[str, bytes]:
    """Closed files of lines, and the watermark of their writer. Returns what the store has in the end."""
    folder.mkdir()
    draw = random.Random(0)
    there = {}
    for number in range(files):
        name, content = f"events-{number:03}.jsonl", draw.randbytes(size)
        there[name] = content
        there[f"{name}.sha256"] = f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode()
        (folder / name).write_bytes(content)
    stamp = "2026-01-02T03:04:05Z"
    there["events-a.watermark"] = json.dumps({"writer": "a", "watermark": stamp, "written": stamp}).encode()
    (folder / "events-a.watermark").write_bytes(there["events-a.watermark"])
    return there


def test_kills_at_any_moment_leave_whole_objects_in_s3(store: Store, tmp_path: Path) -> None:
    there = write_logs(tmp_path / "log", files=24, size=1_500_000)
    draw = random.Random(1)
    for _ in range(4):
        enough = len(store.names()) + draw.randrange(2, 9)
        process = store.begin_shipping(tmp_path / "log")
        while len(store.names()) < enough and process.poll() is None:
            pass
        process.kill()
        store.ended(process)
        names = store.names()
        assert "events-a.watermark" not in names  # not all lines before it are there
        for name in names & there.keys():
            assert store.content(name) == there[name]
            assert name.endswith(".sha256") or f"{name}.sha256" in names
    process = store.begin_shipping(tmp_path / "log")
    assert store.ended(process).endswith("files shipped\n")
    assert process.returncode == 0
    assert store.names() == there.keys()
    assert {name: store.content(name) for name in there} == there


def test_a_store_that_is_away_or_refuses_is_named_without_its_secrets(store: Store, tmp_path: Path) -> None:
    write_logs(tmp_path / "log", files=1, size=1_000)
    for url, ship in (
        (f"http://127.0.0.1:{free_port()}", store.ship),  # nobody listens
        (store.url, "s3://another/logs"),  # it has no such bucket
    ):
        broken = Store(url, store.secrets, ship)
        process = broken.begin_shipping(tmp_path / "log")
        said = broken.ended(process)
        store.said += said
        assert process.returncode == 1
        assert "0 of 1 files shipped" in said
        assert "Traceback" not in said
        assert len(said.splitlines()) == 2
        assert not mark_of(tmp_path / "log" / "events-000.jsonl").exists()
