"""Shipping: closed files and then watermarks, whole or not there, through kills and a destination that is away."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest

from service.base.clock import Clock
from service.impressions import writer
from service.log_files.folder import LogFolder
from service.log_files.rotated_files import RotatedFiles
from service.log_files.shipped import is_shipped, mark_of
from service.settings import read_settings
from service.ship import copying
from service.ship.copying import Copying
from service.ship.destination import Destination
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.reliability.load import metric
from tests.service.impressions.impressions_read import lines_of
from tests.service.in_process import client_of, sample
from tests.service.running import ROOT, RunningService

WAIT_SECONDS = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    return tmp_path / "log"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def write(folder: Path, name: str, content: bytes = b"{}\n") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def watermark(folder: Path, writer: str, second: int) -> Path:
    stamp = f"2026-01-02T03:04:{second:02}Z"
    content = {"writer": writer, "watermark": stamp, "written": stamp}
    return write(folder, f"events-{writer}.watermark", json.dumps(content).encode())


def copying_of(folder: Path, url: str, name: str = "events") -> Copying:
    log = LogFolder(folder, f"{name}-")
    return Copying(log, Destination(url, name), is_converted=name == "impressions", on_shipped=lambda: None)


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} if folder.exists() else set()


def test_a_copy_is_whole_has_its_checksum_and_is_made_once(folder: Path, out: Path) -> None:
    contents = {f"events-2026010{day}T000000.000000-ab.jsonl": os.urandom(day * 700_000) for day in (1, 2, 3)}
    for name, content in contents.items():
        write(folder, name, content)
    write(folder, ".events-20260104T000000.000000-ab.jsonl.part")  # open
    write(folder, "impressions-20260101T000000.000000-ab.jsonl")  # of another log
    one = copying_of(folder, str(out))
    one.ship()
    there = out / "events"
    assert names_in(there) == {*contents, *(f"{name}.sha256" for name in contents)}
    for name, content in contents.items():
        assert (there / name).read_bytes() == content
    checked = [f"{name}.sha256" for name in contents]
    assert subprocess.run(["sha256sum", "--check", "--quiet", *checked], cwd=there, check=False).returncode == 0
    times = {name: (there / name).stat().st_mtime_ns for name in contents}
    one.ship()
    copying_of(folder, str(out)).ship()
    assert {name: (there / name).stat().st_mtime_ns for name in contents} == times


def test_a_store_without_folders_or_renames_gets_the_same(folder: Path) -> None:
    """fsspec's memory is one: a name is a key, and a rename a copy."""
    name = "events-20260101T000000.000000-ab.jsonl"
    write(folder, name, b"x" * 3_000_000)
    watermark(folder, "a", 5)
    copying_of(folder, "memory://bucket/logs").ship()
    store = fsspec.filesystem("memory")
    assert {path.rsplit("/", 1)[1] for path in store.find("/bucket/logs/events")} == {
        name,
        f"{name}.sha256",
        "events-a.watermark",
    }
    assert store.cat(f"/bucket/logs/events/{name}") == b"x" * 3_000_000
    # A process that was killed between the two steps of a move, before its mark.
    mark_of(folder / name).unlink()
    store.pipe_file(f"/bucket/logs/events/.{name}.part", b"x" * 3_000_000)
    copying_of(folder, "memory://bucket/logs").ship()
    assert not store.exists(f"/bucket/logs/events/.{name}.part")
    store.rm("/bucket", recursive=True)


def test_no_watermark_is_there_before_the_lines_that_it_passes(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watermark(folder, "a", 5)
    for number in range(3):
        write(folder, f"events-{number}.jsonl")
    copy = Destination.copy

    def failing(destination: Destination, file: Path) -> None:
        if file.name == "events-1.jsonl":
            raise OSError(28, "No space left on device")
        copy(destination, file)

    one = copying_of(folder, str(out))
    with monkeypatch.context() as patch:
        patch.setattr(Destination, "copy", failing)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                one.ship()
            assert names_in(out / "events") == {"events-0.jsonl", "events-0.jsonl.sha256"}

    def late(destination: Destination, file: Path) -> None:
        # A writer that closes a file and moves its watermark while files are copied.
        if not (folder / "events-9.jsonl").exists():
            write(folder, "events-9.jsonl")
            watermark(folder, "a", 9)
        copy(destination, file)

    with monkeypatch.context() as patch:
        patch.setattr(Destination, "copy", late)
        one.ship()
    assert not (out / "events" / "events-9.jsonl").exists()
    published = out / "events" / "events-a.watermark"
    assert not published.exists() or "03:04:05" in published.read_text()
    one.ship()
    assert "03:04:09" in published.read_text()
    assert (out / "events" / "events-9.jsonl").exists()


def test_a_writer_that_is_gone_goes_there_too_and_those_of_other_hosts_stay(folder: Path, out: Path) -> None:
    mine = watermark(folder, "a", 5)
    copying_of(folder, str(out)).ship()
    other = watermark(out / "events", "elsewhere", 1)
    assert names_in(out / "events") == {"events-a.watermark", other.name}
    mine.unlink()
    copying_of(folder, str(out)).ship()  # another process: it knows by what the first one left
    assert names_in(out / "events") == {other.name}
    assert names_in(folder) == set()


def test_lines_wait_to_become_parquet_but_not_for_ever(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = write(folder, "impressions-1.jsonl")
    write(folder, "impressions-a.watermark", b"{}")
    one = copying_of(folder, str(out), "impressions")
    one.ship()
    assert names_in(out / "impressions") == set()
    write(folder, "impressions-1.parquet", b"PAR1")
    lines.unlink()
    one.ship()
    there = {"impressions-1.parquet", "impressions-1.parquet.sha256", "impressions-a.watermark"}
    assert names_in(out / "impressions") == there
    write(folder, "impressions-2.jsonl")
    monkeypatch.setattr(copying, "CONVERSION_SECONDS", 0.0)
    one.ship()
    assert names_in(out / "impressions") - there == {"impressions-2.jsonl", "impressions-2.jsonl.sha256"}
    # It becomes Parquet after all: the same lines are not sent again, nor by a process that died before its mark.
    (folder / "impressions-2.jsonl").rename(folder / "impressions-2.parquet")
    one.ship()
    mark_of(folder / "impressions-2.parquet").unlink()
    copying_of(folder, str(out), "impressions").ship()
    assert is_shipped(folder / "impressions-2.parquet")
    assert not (out / "impressions" / "impressions-2.parquet").exists()


def test_kills_at_any_moment_leave_whole_files_and_no_line_twice(folder: Path, out: Path) -> None:
    rng = random.Random(0)
    contents = {f"events-{number:03}.jsonl": rng.randbytes(400_000) for number in range(60)}
    for name, content in contents.items():
        write(folder, name, content)
    command = [sys.executable, "-m", "service", "ship", "--event-log", str(folder)]
    environment = {**os.environ, "FEEDRANK_SHIP": out.as_uri()}
    there = out / "events"
    for _ in range(5):
        before = len(names_in(there))
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + WAIT_SECONDS
        while len(names_in(there)) < before + rng.randrange(2, 12) and process.poll() is None:
            assert time.monotonic() < deadline
        process.kill()
        process.wait()
        for name in names_in(there) & contents.keys():
            assert (there / name).read_bytes() == contents[name]
            assert (there / f"{name}.sha256").exists()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("files shipped\n")
    assert names_in(there) == {*contents, *(f"{name}.sha256" for name in contents)}
    for name, content in contents.items():
        assert (there / name).read_bytes() == content
    assert (there / "events-000.jsonl").stat().st_mode & 0o777 == 0o600


def test_only_what_is_shipped_goes_when_the_folder_is_over_its_bound(folder: Path, out: Path) -> None:
    removed: list[int] = []
    files = RotatedFiles(
        LogFolder(folder, "events-"),
        Clock(),
        file_bytes=100,
        keep_bytes=150,
        may_remove=is_shipped,
        on_removed=removed.append,
    )
    for number in range(4):
        assert files.append([b"%d" % number + b"x" * 98 + b"\n"]) == (1, None)
        files.close()
    assert len(names_in(folder)) == 4
    copying_of(folder, str(out)).ship()
    assert files.append([b"4" + b"x" * 98 + b"\n"]) == (1, None)
    files.close()
    assert removed == [4]
    kept = [file.read_bytes()[:1] for file in LogFolder(folder, "events-").whole_files()]
    assert kept == [b"4"]
    assert names_in(folder) == {file.name for file in LogFolder(folder, "events-").whole_files()}  # no mark is left
    assert len(names_in(out / "events")) == 8


def test_a_service_ships_both_logs_and_a_destination_that_is_away_costs_no_request(
    tmp_path: Path, folder: Path, out: Path
) -> None:
    publish_artifact(tmp_path / "models")
    out.write_text("in the way")
    flags = ("--impression-log", str(folder), "--event-log", str(folder), "--ship", out.as_uri())
    events = {"events": [{"request_id": "r-1", "type": "click", "id": "a", "event_id": "e-1"}]}
    with RunningService(tmp_path / "models", *flags, "--workers", "2", "--threads", "1") as service:
        service.wait_workers(2).wait_ready()
        for number in range(20):
            body = {**TINY_REQUEST, "request_id": f"r-{number}"}
            assert service.client.post("/v1/rank", json=body).status_code == 200
        assert service.client.post("/v1/events", json=events).status_code == 202
        # A file of a writer that was killed: closed at the start, and waiting since.
        write(folder, "events-20260101T000000.000000-ab.jsonl")
        service.wait_for(lambda: metric(service.client, "ranking_log_ship_failures_total", log="events") >= 2)
        assert metric(service.client, "ranking_log_unshipped_files", log="events") >= 1
        assert service.client.post("/v1/rank", json=TINY_REQUEST).status_code == 200
        out.unlink()
        service.wait_for(lambda: metric(service.client, "ranking_log_files_shipped_total", log="events") >= 1)
        assert service.stop(signal.SIGTERM) == 0
        (told,) = service.log_lines("feedrank.ship")
        assert "Traceback" not in "".join(service.log)
    assert told["message"] == "closed files of a log are not shipped; they stay and are tried again"
    found = [line["request_id"] for line in lines_of(out / "impressions")]
    assert len(found) == 21
    assert {f"r-{number}" for number in range(20)} <= set(found)
    shipped = [file.read_bytes() for file in (out / "events").glob("*.jsonl")]
    assert sum(json.loads(line).get("event_id") == "e-1" for part in shipped for line in part.splitlines()) == 1
    assert not list(out.rglob("*.watermark"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--ship", "file:out"], "--ship needs --impression-log or --event-log"),
        (["--event-log", ".", "--ship", "nowhere://bucket"], "'nowhere' cannot be opened"),
    ],
)
def test_a_destination_that_cannot_be_ends_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    with pytest.raises(SystemExit):
        read_settings(["--models", str(tmp_path), *flags], {})
    assert said in capsys.readouterr().err


def test_a_secret_of_the_url_is_in_no_message(folder: Path) -> None:
    write(folder, "events-1.jsonl")
    url = "http://user:very-secret@127.0.0.1:1/logs"
    command = [sys.executable, "-m", "service", "ship", "--event-log", str(folder)]
    environment: dict[str, Any] = {**os.environ, "FEEDRANK_SHIP": url}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "very-secret" not in done.stdout + done.stderr
    assert done.stderr.startswith("events: ")
    assert done.stderr.count("\n") == 1


def test_a_full_folder_of_what_is_not_shipped_costs_impressions_that_are_counted(
    tmp_path: Path, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_artifact(tmp_path / "models")
    out.write_text("in the way")
    monkeypatch.setattr(writer, "_FULL_SECONDS", 0.05)
    bound, answered = 2**20, 0

    def counted(result: str) -> float:
        return sample(client, "ranking_impression_log_total", result=result)

    settings: dict[str, Any] = {"impression_log": folder, "impression_log_max_bytes": bound, "ship": out.as_uri()}
    with client_of(tmp_path / "models", **settings) as client:

        def ask() -> None:
            nonlocal answered
            body = {**TINY_REQUEST, "user": {**TINY_REQUEST["user"], "country": os.urandom(10_000).hex()}}
            assert client.post("/v1/rank", json=body).status_code == 200
            answered += 1

        deadline = time.monotonic() + WAIT_SECONDS
        while not counted("full"):
            assert time.monotonic() < deadline
            ask()
        # A file is 128 KiB, and one more may be open when the bound is seen to be passed.
        assert sum(file.stat().st_size for file in folder.iterdir()) <= bound + 2 * bound // 8
        out.unlink()
        written = counted("written")
        while counted("written") == written:
            assert time.monotonic() < deadline + WAIT_SECONDS
            ask()
    lines = lines_of(out / "impressions")
    assert sum(line.get("lost", 1) for line in lines) == answered


@pytest.mark.parametrize("limit", ["_END_SECONDS", "_STUCK_SECONDS"])
def test_a_destination_that_hangs_for_good_keeps_no_folder_from_the_next_process(
    folder: Path, out: Path, limit: str
) -> None:
    """A FIFO without a reader takes the place of the copy: to open it for writing never ends."""
    write(folder, "events-1.jsonl")
    (out / "events").mkdir(parents=True)
    os.mkfifo(out / "events" / ".events-1.jsonl.part")
    program = (
        "import sys; from service.ship import command; setattr(command, sys.argv[1], 0.2); "
        "command.main(['--watch', '--event-log', sys.argv[2]])"
    )
    command = [sys.executable, "-c", program, limit, str(folder)]
    environment = {**os.environ, "FEEDRANK_SHIP": str(out)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        if limit == "_END_SECONDS":
            process.stdin.close()  # as at the end of its starter, however it ends
        assert process.wait(WAIT_SECONDS) == 1
        assert process.stderr.read() == b""  # it did not fail: it was stuck
    assert not is_shipped(folder / "events-1.jsonl")
