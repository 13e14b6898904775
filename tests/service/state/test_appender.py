"""Events become entries of histories: each identity once, in the user's next request, after any kill."""

import os
import random
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from service.events.event_log import event_files
from service.log_files.folder import LogFolder
from service.state.event_tail import Tail, read_tail
from service.state.sqlite_store import SqliteStore
from service.state.store import StoreFullError
from service.state.user_state import Entry, UserState, merged, store_name
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.deploy.programs import wait_for
from tests.service.in_process import client_of, sample
from tests.service.running import RunningService
from tests.service.state.stores import STATE, sqlite_url, store_at

CANDIDATES = TINY_REQUEST["candidates"]
NOW = datetime.now(UTC) - timedelta(hours=1)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    publish_artifact(tmp_path / "models")
    (tmp_path / "models" / "tiny" / "state.yaml").write_text(STATE)
    (tmp_path / "events").mkdir()
    return tmp_path / "models"


@pytest.fixture
def client(models: Path, tmp_path: Path) -> Iterator[TestClient]:
    url = sqlite_url(tmp_path / "state.db")
    with client_of(models, state=url, event_log=tmp_path / "events", state_timeout_ms=5000) as client:
        yield client


def click(number: int, video: object, seconds: int, user: object = 17, **more: Any) -> dict[str, Any]:
    time = (NOW + timedelta(seconds=seconds)).isoformat()
    event = {"request_id": "r-1", "type": "click", "id": "v", "event_id": f"e-{number}", "time": time, **more}
    return {**event, "user": user, "video_id": video}


def send(client: Any, *events: dict[str, Any]) -> None:
    answer = client.post("/v1/events", json={"events": list(events)})
    assert answer.status_code == 202, answer.text


def appended(client: TestClient, result: str = "appended") -> float:
    return sample(client, "ranking_state_appends_total", model="tiny", result=result)


def history(path: Path, key: str = "17") -> list[Any]:
    store = store_at(path)
    (blob,) = store.read([store_name("tiny", key)])
    store.close()
    return [entry.value for entry in UserState.decoded(blob).lists.get("history", [])]


def wait_appended(client: TestClient, count: float, result: str = "appended") -> None:
    while appended(client, result) < count:
        time.sleep(0.01)
    assert appended(client, result) == count


def test_entries_are_the_newest_by_their_time_each_identity_once(client: TestClient, tmp_path: Path) -> None:
    send(client, click(1, 3, 10), click(2, 9, 30), click(1, 3, 10), click(3, 4, 20, user="17"))
    wait_appended(client, 3)
    assert history(tmp_path / "state.db") == [3, 4, 9]
    assert appended(client, "doubled") == 1
    send(client, click(4, 8, 40), click(5, 1, 5))  # keep: 3
    wait_appended(client, 4)
    wait_appended(client, 1, "old")
    assert history(tmp_path / "state.db") == [4, 9, 8]
    inline = {"user_id": 17, "tab": 1, "history": [4, 9, 8]}
    answers = [
        client.post("/v1/rank", json={"user": user, "candidates": CANDIDATES}).json()["candidates"]
        for user in (inline, {"user_id": 17, "tab": 1})
    ]
    assert answers[0] == answers[1]


def test_what_names_no_user_or_has_no_value_is_counted(client: TestClient, tmp_path: Path) -> None:
    nobody = click(1, 3, 10)
    del nobody["user"]
    bare = click(2, 3, 10)
    del bare["video_id"]
    by_feature = {**click(3, 5, 10), "user_id": 18}
    del by_feature["user"]
    send(client, nobody, bare, by_feature, {**click(4, 3, 10), "type": "shown"})
    wait_appended(client, 1)
    assert (appended(client, "no_user"), appended(client, "no_value")) == (1, 1)
    assert history(tmp_path / "state.db", "18") == [5]


def test_an_event_that_adds_to_a_history_needs_an_identity(client: TestClient) -> None:
    event = click(1, 3, 10)
    del event["event_id"]
    refused = client.post("/v1/events", json={"events": [event]})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["path"] == "events[0].event_id"


def test_merging_is_idempotent_and_knows_no_order() -> None:
    """Against a slow loop: every permutation and repetition of the same entries gives the newest of them."""
    draw = random.Random(3)
    for _ in range(200):
        entries = [Entry(draw.randrange(5), float(draw.randrange(6)), identity + 1) for identity in range(12)]
        keep = draw.randint(1, 12)
        expected = sorted(entries, key=lambda entry: (entry.time, entry.identity))[-keep:]
        told = entries * 2
        draw.shuffle(told)
        kept: list[Entry] = []
        for start in range(0, len(told), 5):
            kept = merged(kept, told[start : start + 5], keep)
        assert kept == expected


def test_a_deleted_user_does_not_come_back_by_a_restart(models: Path, tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "state.db")
    settings = {"state": url, "event_log": tmp_path / "events", "state_timeout_ms": 5000}
    with client_of(models, **settings) as client:
        send(client, click(1, 3, 10))
        wait_appended(client, 1)
    store = store_at(tmp_path / "state.db")
    name = store_name("tiny", "17")
    store.change([name], lambda _: {name: None})
    store.close()
    with client_of(models, **settings) as client:
        send(client, click(2, 9, 20))
        wait_appended(client, 1)
    assert history(tmp_path / "state.db") == [9]


def test_a_store_that_was_away_gets_every_event(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change = SqliteStore.change
    with client_of(models, state=sqlite_url(tmp_path / "state.db"), event_log=tmp_path / "events") as client:
        with monkeypatch.context() as patch:
            patch.setattr(SqliteStore, "change", _raise_full)
            send(client, click(1, 3, 10), click(2, 4, 20))
            while sample(client, "ranking_state_append_lag_seconds") == 0:
                time.sleep(0.01)
        assert SqliteStore.change is change
        wait_appended(client, 2)
        while sample(client, "ranking_state_append_lag_seconds") > 0:
            time.sleep(0.01)
    assert history(tmp_path / "state.db") == [3, 4]


def test_a_file_that_is_closed_while_the_folder_is_listed_keeps_its_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read from its beginning again, it would bring back a user who was deleted since."""
    log, part = event_files(tmp_path), tmp_path / ".events-1.jsonl.part"
    part.write_bytes(b'{"type": "click"}\n')
    before = read_tail(log, {}, 1000)
    named, open_files = LogFolder.named, LogFolder.open_files

    def closing(found: list[Path]) -> list[Path]:
        if part.exists():
            part.rename(tmp_path / "events-1.jsonl")
        return found

    monkeypatch.setattr(LogFolder, "named", lambda log, suffix: closing(named(log, suffix)))
    monkeypatch.setattr(LogFolder, "open_files", lambda log: closing(open_files(log)))
    assert read_tail(log, before.offsets, 1000) == Tail([], before.offsets, {"events-1": 0})
    assert not part.exists()


def test_events_that_are_removed_before_they_are_appended_are_said(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A log that is shipped is kept within its bound, whether the store is there or not."""
    log, tails = tmp_path / "events", list[Tail]()

    def kept_tail(*arguments: Any) -> Tail:
        tails.append(read_tail(*arguments))
        return tails[-1]

    monkeypatch.setattr("service.state.appender.read_tail", kept_tail)
    with client_of(models, state=sqlite_url(tmp_path / "state.db"), event_log=log) as client:
        send(client, click(1, 3, 10))
        wait_appended(client, 1)
        with monkeypatch.context() as patch:
            patch.setattr(SqliteStore, "change", _raise_full)
            send(client, click(2, 4, 20))
            while sample(client, "ranking_state_append_lag_seconds") == 0:
                time.sleep(0.01)
            (part,) = log.glob(".events-*.part")
            left = len(part.read_bytes().splitlines(keepends=True)[-1])
            # A file that is gone when the store is back.
            other = log / "events-20200101T000000.000000-0.jsonl"
            other.write_bytes(part.read_bytes()[-left:])
            wait_for(lambda: other.stem in tails[-1].left)
            other.unlink()
            wait_for(lambda: "were removed before their events were in users' state" in caplog.text)
        assert sample(client, "ranking_state_missed_bytes_total") == left
        wait_appended(client, 2)
    (record,) = (record for record in caplog.records if "were removed before" in record.getMessage())
    assert record.__dict__["fields"] == {"files": 1, "bytes": left}


def _raise_full(*_: object) -> None:
    raise StoreFullError("the disk of the state file is full")


def test_a_killed_leader_loses_and_doubles_nothing(models: Path, tmp_path: Path) -> None:
    """Two workers. The one that appends is killed between events, and the other goes on."""
    flags = ("--workers", "2", "--threads", "1", "--state", sqlite_url(tmp_path / "state.db"))
    (models / "tiny" / "state.yaml").write_text(STATE.replace("keep: 3", "keep: 1000"))
    sent = 0
    with RunningService(models, *flags, "--event-log", str(tmp_path / "events")) as service:
        service.wait_ready().wait_workers(2)
        for number in range(40):
            service.wait_for(partial(_is_accepted, service, click(sent, sent, sent)))
            sent += 1
            if number == 20:
                os.kill(_holder(tmp_path / "events" / ".state-appender", service.workers()), signal.SIGKILL)
        service.wait_for(lambda: len(history(tmp_path / "state.db")) >= sent)
    assert history(tmp_path / "state.db") == list(range(sent))


def _is_accepted(service: RunningService, event: dict[str, Any]) -> bool:
    """True for an event that was accepted. One whose worker is killed meanwhile may be sent again."""
    try:
        send(service.client, event, event)
    except httpx.TransportError:
        return False
    return True


def _holder(lock: Path, workers: set[int]) -> int:
    """The worker that holds the lock of the folder, by the system's list of locks."""
    inode = lock.stat().st_ino
    while True:
        for line in Path("/proc/locks").read_text().splitlines():
            parts = line.split()
            if parts[1] == "FLOCK" and parts[5].endswith(f":{inode}") and int(parts[4]) in workers:
                return int(parts[4])
        time.sleep(0.01)
