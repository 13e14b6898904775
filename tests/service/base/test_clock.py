"""The clock that replaces the system's: what it reads, what it refuses, and that logs are written by it."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from service.base import replaced_clock
from service.base.replaced_clock import ReplacedClock, is_loopback
from service.events.event_log import event_files
from service.settings import read_settings
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.impressions.impressions_read import lines_of
from tests.service.in_process import client_of, sample

START = datetime(2026, 1, 2, 3, 4, 5, 250_000, UTC)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "clock"
    path.write_text("2026-01-02T03:04:05.250Z\n")
    return path


class Server(ThreadingHTTPServer):
    """Answers with `status` and `text`."""

    status, text = 200, "2026-01-02T04:04:05.25+01:00"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        self.send_header("Location", self.path)
        self.end_headers()
        self.wfile.write(self.server.text.encode())

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_files_time_is_the_time_at_once_and_never_runs_backwards(file: Path) -> None:
    clock = ReplacedClock(str(file))
    assert clock.now() == START
    file.write_text("2026-01-03T00:00:00+00:00")
    assert clock.now() == datetime(2026, 1, 3, tzinfo=UTC)
    file.write_text("2026-01-02T00:00:00Z")
    assert clock.now() == datetime(2026, 1, 3, tzinfo=UTC)


@pytest.mark.parametrize("content", [b"", b"now", b"2026-01-02T03:04:05", b"2026-01-02", b"\xff", b"1" * 65, None])
def test_the_last_time_stands_where_there_is_none(
    file: Path, content: bytes | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaced_clock, "_FAILED_SECONDS", 0.0)
    clock = ReplacedClock(str(file))
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    for _ in range(3):
        assert clock.now() == START
    assert clock.error
    assert [record.message for record in caplog.records] == ["the clock cannot be read; the last time stands"]
    file.write_text("2026-01-02T03:04:06Z")
    assert clock.now() == START.replace(second=6, microsecond=0)
    assert not clock.error
    if content is not None:
        file.write_bytes(content)
        with pytest.raises(ValueError, match="clock: "):
            ReplacedClock(str(file))


def test_a_url_of_this_host_gives_the_time_in_any_zone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaced_clock, "_URL_SECONDS", 0.0)
    monkeypatch.setattr(replaced_clock, "_FAILED_SECONDS", 0.0)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # which is not for this host
    clock = ReplacedClock(f"http://localhost:{server.server_port}/now")
    assert clock.now() == START
    server.text = "2026-01-02T03:04:06Z"
    assert clock.now().second == 6
    for status, text in ((302, server.text), (500, server.text), (200, "1" * 1000)):
        server.status, server.text = status, text
        assert clock.now().second == 6
        assert clock.error is not None
        assert clock.error.startswith("it answers ")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("http://192.0.2.7:80/", "not a loopback host"),
        ("http://localhost.example/", "not a loopback host"),
        ("http://127.0.0.1@192.0.2.7/", "not a loopback host"),
        ("https://localhost/", "a clock is a file, or http:// of this host"),
        ("file://localhost/clock", "a clock is a file, or http:// of this host"),
        ("http://localhost:99999/", "Port out of range"),
        ("nowhere", "No such file"),
    ],
)
def test_a_clock_of_elsewhere_ends_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, said: str
) -> None:
    with pytest.raises(SystemExit):
        read_settings(["--models", str(tmp_path)], {"FEEDRANK_CLOCK": source})
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_service_that_others_reach_has_the_systems_clock(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.7", "example.org"):
        assert not is_loopback(host)
        with pytest.raises(SystemExit):
            read_settings(["--models", str(tmp_path), "--host", host, "--clock", str(file)], {})
        assert "--clock needs a loopback --host" in capsys.readouterr().err
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert read_settings(["--models", str(tmp_path), "--host", host, "--clock", str(file)], {}).clock == str(file)


def test_impressions_events_and_watermarks_have_its_time(tmp_path: Path, file: Path) -> None:
    publish_artifact(tmp_path / "models")
    (tmp_path / "log").mkdir()
    folders = {"impression_log": tmp_path / "log", "event_log": tmp_path / "log"}
    event = {"request_id": "r-1", "type": "click", "id": "a"}
    with client_of(tmp_path / "models", clock=str(file), **folders) as client:
        assert client.post("/v1/rank", json=TINY_REQUEST).status_code == 200
        assert client.post("/v1/events", json={"events": [event]}).status_code == 202
        (mark,) = (tmp_path / "log").glob("events-*.watermark")
        assert json.loads(mark.read_text())["watermark"] == "2026-01-02T03:04:05.250Z"
        assert sample(client, "ranking_file_error", model="", file="clock") == 0
    (line,) = lines_of(tmp_path / "log")
    assert line["time"] == "2026-01-02T03:04:05.250Z"
    (closed,) = event_files(tmp_path / "log").whole_files()
    assert json.loads(closed.read_text())["received"] == "2026-01-02T03:04:05.250Z"
    assert closed.name.startswith("events-20260102T030405.250000-")
