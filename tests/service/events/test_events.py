"""POST /v1/events: what is accepted is on the disk, and what is not is refused whole, by the path of every fault."""

import gzip
import hashlib
import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.events.event_log import event_files
from tests.artifacts import publish_artifact
from tests.service.in_process import client_of, sample, samples
from tests.training_data import small_disk

CLICK: dict[str, Any] = {"request_id": "r-1", "type": "click", "id": "v2"}
JOIN = """
schema: tiny.yaml
impressions: logs/impressions
events: logs/events
out: data/feed
labels:
  is_click: {event: click}
  play_time_ms: {event: play_time_ms, value: sum}
"""


@pytest.fixture
def client(folder: Path, tmp_path: Path) -> Iterator[TestClient]:
    with client_of(tmp_path / "models", event_log=folder) as client:
        yield client


def send(client: TestClient, *events: dict[str, Any]) -> Any:
    return client.post("/v1/events", json={"events": list(events)})


def open_lines(folder: Path) -> list[dict[str, Any]]:
    """Every line of the log, that of open files too."""
    log = event_files(folder)
    files = [*log.whole_files(), *log.open_files()]
    return [json.loads(line) for file in files for line in file.read_text().split("\n")[:-1]]


def faults(answer: Any) -> dict[str, str]:
    assert answer.status_code == 422, answer.text
    return {fault["path"]: fault["message"] for fault in answer.json()["errors"]}


def test_accepted_events_are_lines_of_the_log_at_once(client: TestClient, folder: Path) -> None:
    before = datetime.now(UTC)
    events = [
        {**CLICK, "type": "shown", "position": 0, "time": "2026-11-29T20:15:03.120Z"},
        {**CLICK, "event_id": "e-76", "user": 17, "video_id": 3},
        {**CLICK, "type": "play_time_ms", "value": 41984, "event_id": "e-77", "user": "17", "country": "de"},
    ]
    answer = send(client, *events)
    assert (answer.status_code, answer.json()) == (202, {"accepted": 3})
    lines = open_lines(folder)
    received = [datetime.fromisoformat(line.pop("received")) for line in lines]
    # Receipts are told in milliseconds, cut.
    assert all(before.timestamp() - 0.001 <= at.timestamp() <= datetime.now(UTC).timestamp() for at in received)
    assert [line.pop("model") for line in lines] == ["tiny"] * 3
    assert datetime.fromisoformat(lines[0].pop("time")) == datetime.fromisoformat(events[0].pop("time"))
    assert lines == events


def test_features_are_kept_and_checked_whatever_earlier_events_had(client: TestClient, folder: Path) -> None:
    sent = [
        CLICK,
        {**CLICK, "video_id": 3},
        CLICK,
        {**CLICK, "country": "de"},
        {**CLICK, "video_id": 4, "country": "at"},
    ]
    for event in sent:
        assert send(client, event).status_code == 202
        wrong = send(client, CLICK, {**event, "video_id": "three"})
        assert list(faults(wrong)) == ["events[1].video_id"]
    assert [{key: line[key] for key in line if key not in ("received", "model")} for line in open_lines(folder)] == sent


def test_an_event_may_name_its_model(client: TestClient, folder: Path, tmp_path: Path) -> None:
    publish_artifact(tmp_path / "models", name="other")
    while client.get("/v1/models/other").status_code == 404 or not client.get("/v1/models/other").json().get("schema"):
        pass
    answer = send(client, {**CLICK, "model": "tiny"}, {**CLICK, "model": "other"}, {**CLICK, "model": "tiny"})
    assert answer.status_code == 202
    assert sorted(line["model"] for line in open_lines(folder)) == ["other", "tiny", "tiny"]
    assert "model" in faults(send(client, CLICK))  # which of the two?
    refused = send(client, {**CLICK, "model": "tiny"}, {**CLICK, "model": "nobody"})
    assert refused.status_code == 404
    assert [fault["path"] for fault in refused.json()["errors"]] == ["events[1].model"]
    assert len(open_lines(folder)) == 3


def test_keys_may_be_escaped(client: TestClient, folder: Path, tmp_path: Path) -> None:
    """JSON has many spellings of a key: none hides a model or a value from what is checked."""
    escaped = json.dumps({"events": [{**CLICK, "video_id": "three"}]}).replace("video_id", r"video\u005fid")
    assert list(faults(client.post("/v1/events", content=escaped))) == ["events[0].video_id"]
    publish_artifact(tmp_path / "models", name="other")
    while client.get("/v1/models/other").status_code == 404 or not client.get("/v1/models/other").json().get("schema"):
        pass
    named = json.dumps({"events": [{**CLICK, "model": "other"}]}).replace("model", r"mod\u0065l")
    assert client.post("/v1/events", content=named).status_code == 202
    assert [line["model"] for line in open_lines(folder)] == ["other"]


FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"request_id": ""}, "request_id", "printable"),
    ({"request_id": "ä"}, "request_id", "printable"),
    ({"type": "Click"}, "type", "small letter"),
    ({"type": "click\n"}, "type", "small letter"),
    ({"id": 3}, "id", "a string"),
    ({"position": -1}, "position", "integer"),
    ({"position": True}, "position", "integer"),
    ({"time": "2026-11-29T20:15:03"}, "time", "zone"),
    ({"time": 1764447303}, "time", "zone"),
    ({"value": "3"}, "value", "number"),
    ({"event_id": " "}, "event_id", "printable"),
    ({"user": 2**63}, "user", "int64"),
    ({"user": "x" * 257}, "user", "256"),
    ({"user": ""}, "user", "256"),
    ({"video_id": "three"}, "video_id", "int64"),
    ({"duration_ms": "long"}, "duration_ms", "finite number"),
    ({"vido_id": 3}, "vido_id", "did you mean 'video_id'"),
    ({"history": 3}, "history", "list"),
    ({"model": 3}, "model", "string"),
]


def test_a_fault_is_named_by_its_path_and_nothing_is_written(client: TestClient, folder: Path) -> None:
    for event, path, rule in FAULTS:
        found = faults(send(client, CLICK, {**CLICK, **event}))
        assert list(found) == [f"events[1].{path}"]
        assert rule in found[f"events[1].{path}"]
    assert open_lines(folder) == []


def test_every_fault_of_a_body_is_named(client: TestClient) -> None:
    found = faults(send(client, {"type": "Click"}, CLICK, {**CLICK, "position": 1.5, "value": "x"}))
    assert set(found) == {
        *(f"events[0].{key}" for key in ("request_id", "id", "type")),
        *(f"events[2].{key}" for key in ("position", "value")),
    }


BODIES: list[tuple[bytes, int]] = [
    (b"", 400),
    (b"[]", 422),
    (b"{}", 422),
    (b'{"events": []}', 422),
    (b'{"events": {}}', 422),
    (b'{"events": [3]}', 422),
    (b'{"events": [], "more": 1}', 422),
    (b'{"events": [{"request_id": "a", "type": "c", "id": "x", "value": 1e999}]}', 400),
    (b'{"events": [{"request_id": "a", "type": "c", "id": "\\ud800"}]}', 400),
    (b'{"events": ' + b"[" * 100_000, 400),
    (json.dumps({"events": [CLICK] * 1_001}).encode(), 413),
    (b'{"events": [' + b" " * 2**20 + b"]}", 413),
]


def test_a_body_that_is_none_is_refused(client: TestClient, folder: Path) -> None:
    for body, status in BODIES:
        assert client.post("/v1/events", content=body).status_code == status, body[:80]
    assert open_lines(folder) == []


def test_a_hundred_thousand_wrong_keys_are_refused_by_the_first_ones(client: TestClient, folder: Path) -> None:
    keys = {f"k{number}": 0 for number in range(60_000)}
    for document in ({**keys, "events": [CLICK]}, {"events": [{**CLICK, **keys}]}):
        found = faults(client.post("/v1/events", json=document))
        assert len(found) == 20
        assert all("unknown key" in rule for rule in found.values())
    assert open_lines(folder) == []


def test_a_thousand_events_fit_and_may_be_compressed(client: TestClient, folder: Path) -> None:
    events = [{**CLICK, "id": f"v{number}", "event_id": f"e-{number}"} for number in range(1_000)]
    body = gzip.compress(json.dumps({"events": events}).encode())
    answer = client.post("/v1/events", content=body, headers={"Content-Encoding": "gzip"})
    assert answer.json() == {"accepted": 1_000}
    assert [line["id"] for line in open_lines(folder)] == [event["id"] for event in events]


def test_text_that_looks_like_a_line_stays_within_its_event(client: TestClient, folder: Path) -> None:
    tricky = '\n{"received":"1970-01-01T00:00:00.000Z","model":"x"\u2028\\'
    assert send(client, {**CLICK, "id": tricky}, {**CLICK, "user": tricky}).status_code == 202
    first, second = open_lines(folder)
    assert (first["id"], second["user"], first["model"]) == (tricky, tricky, "tiny")


def test_types_that_add_up_need_an_identity(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "models" / "tiny" / "join.yaml"
    file.write_text(JOIN)
    with client_of(tmp_path / "models", event_log=folder) as client:
        play = {**CLICK, "type": "play_time_ms", "value": 3.5}
        while (answer := send(client, CLICK, play)).status_code == 202:
            pass  # the file is read once the model is served
        assert list(faults(answer)) == ["events[1].event_id"]
        assert send(client, CLICK, {**play, "event_id": "e-1"}).status_code == 202
        # A file that goes bad leaves its rules in force, and says so.
        file.write_text(JOIN.replace("sum", "total"))
        while sample(client, "ranking_file_error", model="tiny", file="join") != 1:
            pass
        assert send(client, play).status_code == 422


def test_events_are_counted_by_the_types_that_the_model_names(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "models" / "tiny" / "join.yaml").write_text(JOIN)
    with client_of(tmp_path / "models", event_log=folder) as client:
        play = {**CLICK, "type": "play_time_ms"}
        while send(client, play).status_code == 202:
            pass
        before = samples(client, "ranking_events_total")
        late = {**CLICK, "type": "swiped", "time": "2020-01-01T00:00:00Z"}
        assert send(client, CLICK, CLICK, late, {**CLICK, "type": "shown"}).status_code == 202
        after = samples(client, "ranking_events_total")
        added = {dict(labels)["type"]: count - before.get(labels, 0.0) for labels, count in after.items()}
        assert {kind: count for kind, count in added.items() if count} == {"click": 2, "other": 1, "shown": 1}
        assert sample(client, "ranking_event_delay_seconds_count") == 1
        assert sample(client, "ranking_event_delay_seconds_sum") > 5 * 365 * 86400
        assert math.isclose(sum(after.values()), sample(client, "ranking_event_log_total", result="written"))


def test_without_the_log_the_route_says_which_flag_is_missing(tmp_path: Path) -> None:
    publish_artifact(tmp_path / "models")
    with client_of(tmp_path / "models") as client:
        answer = send(client, CLICK)
    assert answer.status_code == 404
    assert "--event-log" in answer.json()["detail"]


def test_a_log_at_its_bound_refuses_whole_requests_until_there_is_room(folder: Path, tmp_path: Path) -> None:
    with client_of(tmp_path / "models", event_log=folder, event_log_max_bytes=2**20) as client:
        events = [{**CLICK, "id": "x" * 900} for _ in range(900)]
        accepted = 0
        while (answer := send(client, *events)).status_code == 202:
            accepted += len(events)
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert len(open_lines(folder)) == accepted
        assert sample(client, "ranking_event_log_total", result="full") == len(events)
        assert sample(client, "ranking_requests_rejected_total", reason="event_log") == 1


def test_a_full_disk_refuses_and_leaves_no_half_of_a_request(tmp_path: Path) -> None:
    publish_artifact(tmp_path / "models")
    with small_disk(tmp_path / "disk", 64) as folder:
        with client_of(tmp_path / "models", event_log=folder) as client:
            events = [{**CLICK, "id": "x" * 100} for _ in range(100)]
            accepted = 0
            while (answer := send(client, *events)).status_code == 202:
                accepted += 1
            assert answer.status_code == 503
            assert accepted >= 2
            assert len(open_lines(folder)) == 100 * accepted
            assert sample(client, "ranking_event_log_total", result="failed") == 100
        assert len(open_lines(folder)) == 100 * accepted


def test_a_stopped_service_leaves_whole_files_and_no_watermark(folder: Path, tmp_path: Path) -> None:
    with client_of(tmp_path / "models", event_log=folder) as client:
        send(client, CLICK)
        (watermark,) = folder.glob("*.watermark")
        content = json.loads(watermark.read_text())
        assert datetime.fromisoformat(content["watermark"]) <= datetime.now(UTC)
    assert event_files(folder).open_files() == []
    assert len(open_lines(folder)) == 1
    assert {file.suffix for file in folder.iterdir()} == {".jsonl"}


def test_a_key_needs_the_scope_of_events(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    entries = [
        f"  - {{name: {name}, scopes: [{scope}], sha256: {hashlib.sha256(name.encode()).hexdigest()}}}"
        for name, scope in (("scorer", "score"), ("backend", "events"), ("boss", "admin"))
    ]
    keys.write_text("\n".join(["keys:", *entries]))
    with client_of(tmp_path / "models", event_log=folder, keys_file=keys) as client:
        found = {}
        for name in ("nobody", "scorer", "backend", "boss"):
            headers = {"Authorization": f"Bearer {name}"}
            found[name] = client.post("/v1/events", json={"events": [CLICK]}, headers=headers).status_code
            if name == "backend":
                assert client.post("/v1/rank", json={}, headers=headers).status_code == 403
    assert found == {"nobody": 401, "scorer": 403, "backend": 202, "boss": 202}
