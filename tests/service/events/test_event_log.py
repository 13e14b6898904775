"""The event log on the disk: nothing accepted is lost to a kill, and a watermark never passes a line that is open."""

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from service.base.clock import Clock
from service.events import event_log
from service.events.event_log import event_files
from service.log_files import log_writer
from service.log_files.folder import LogFolder
from service.log_files.rotated_files import RotatedFiles
from service.log_files.watermark import Watermark, new_writer
from tests.service.events.killed import CLICK, kill_under_load, lines_of
from tests.service.in_process import client_of


def wait_for(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends_at, "it never came true"
        time.sleep(0.005)


def watermarks(folder: Path) -> list[datetime]:
    """Watermarks of the writers, each read whole."""
    return [datetime.fromisoformat(json.loads(file.read_text())["watermark"]) for file in folder.glob("*.watermark")]


def test_the_watermark_moves_idle_or_not_and_passes_no_line_that_is_open(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "WATERMARK_SECONDS", 0.05)
    with client_of(tmp_path / "models", event_log=folder) as client:
        (first,) = watermarks(folder)
        wait_for(lambda: watermarks(folder)[0] > first)
        sent, seen = 0, set[datetime]()
        while len(seen) < 5:
            (watermark,) = watermarks(folder)
            # Read after the watermark: whatever was received before it is in a closed file by now.
            closed = lines_of(event_files(folder).whole_files())
            answer = client.post("/v1/events", json={"events": [{**CLICK, "event_id": f"e-{sent}"}]})
            assert answer.status_code == 202
            sent += 1
            if watermark not in seen:
                seen.add(watermark)
                before = [line for line in everything(folder) if datetime.fromisoformat(line["received"]) < watermark]
                assert {line["event_id"] for line in before} <= {line["event_id"] for line in closed}
    assert [line["event_id"] for line in everything(folder)] == [f"e-{number}" for number in range(sent)]


def everything(folder: Path) -> list[dict[str, Any]]:
    log = event_files(folder)
    return lines_of([*log.whole_files(), *log.open_files()])


def test_a_dead_writer_s_watermark_goes_when_its_files_have_names(tmp_path: Path) -> None:
    log = LogFolder(tmp_path, "events-")
    living, dead = Watermark(log, new_writer()), Watermark(log, new_writer())
    for writer in (living, dead):
        now = datetime.fromisoformat("2026-11-29T20:15:03.120Z")
        writer.move(now, now)
    assert living.dead_writers() == []
    os.close(dead._lock)  # as the kernel does when a process is killed
    (found,) = living.dead_writers()
    assert living.dead_writers() == [], "held for one"
    assert found.writer == dead.writer
    assert found.last_time == now
    found.close()
    assert len(watermarks(tmp_path)) == 2
    (found,) = living.dead_writers()
    found.remove_watermark()
    found.close()
    (left,) = tmp_path.glob("*.watermark")
    assert json.loads(left.read_text()) == {
        "writer": living.writer,
        "watermark": "2026-11-29T20:15:03.120Z",
        "written": "2026-11-29T20:15:03.120Z",
    }
    living.close()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_was_taken_for_dead_while_it_began_can_be_found_after_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = LogFolder(tmp_path, "events-")
    other = Watermark(log, new_writer())
    flock, taken = fcntl.flock, list[int]()

    def late(descriptor: int, operation: int) -> None:
        if not taken:  # the new file is there, and not locked yet
            taken.append(descriptor)
            (found,) = other.dead_writers()
            found.remove_watermark()
            found.close()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    writer = Watermark(log, new_writer())
    now = datetime.fromisoformat("2026-11-29T20:15:03.120Z")
    writer.move(now, now)
    assert len(taken) == 1
    assert other.dead_writers() == []
    os.close(writer._lock)  # as the kernel does when a process is killed
    (found,) = other.dead_writers()
    assert found.writer == writer.writer
    found.close()
    other.close()


def test_a_file_that_was_taken_for_a_dead_writer_s_while_it_began_has_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = LogFolder(tmp_path, "events-")
    writer, other = (RotatedFiles(log, Clock(), file_bytes=1000, keep_bytes=None) for _ in range(2))
    flock, taken = fcntl.flock, list[int]()

    def late(descriptor: int, operation: int) -> None:
        if not taken:
            taken.append(descriptor)
            other.tidy_folder()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    assert writer.append([b"{}\n"]) == (1, None)
    writer.close()
    assert lines_of(log.whole_files()) == [{}]


@pytest.mark.slow
def test_what_was_accepted_survives_kills_of_workers_and_of_the_parent(folder: Path, tmp_path: Path) -> None:
    seen = kill_under_load(tmp_path / "models", folder, lives=2, kills=3, seed=0)
    # The next start names what the killed ones left.
    assert list(folder.glob("*.watermark")) == []
    assert event_files(folder).open_files() == []
    assert set(seen.accepted) <= set(seen.found)
    # No accepted event is there twice: a client that got its answer does not send again.
    assert len(seen.found) == len(set(seen.found))


def test_a_disk_that_hangs_costs_events_and_no_ranking(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    append = RotatedFiles.append

    def waiting(files: Any, blocks: Any) -> Any:
        hangs.wait()
        return append(files, blocks)

    monkeypatch.setattr(event_log, "WRITE_SECONDS", 0.1)
    monkeypatch.setattr(RotatedFiles, "append", waiting)
    with client_of(tmp_path / "models", event_log=folder) as client:
        for number in range(3):
            answer = client.post("/v1/events", json={"events": [{**CLICK, "event_id": f"slow-{number}"}]})
            assert answer.status_code == 503
            assert "Retry-After" in answer.headers
        assert client.get("/readyz").status_code == 200
        hangs.set()
        while client.post("/v1/events", json={"events": [{**CLICK, "event_id": "kept"}]}).status_code != 202:
            pass
    found = [line["event_id"] for line in everything(folder)]
    # The one whose write hung may be there. Of those that waited behind it none is.
    assert set(found) - {"slow-0"} == {"kept"}
