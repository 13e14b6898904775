"""The impression log: what is written, how much is lost and counted, and that no request ever waits for the disk."""

import copy
import gc
import json
import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model.scorer.scorer import Scored, Scorer
from model.value_models.value_model import DEFAULT, ValueModels
from service.base.clock import Clock
from service.base.record import RequestRecord
from service.impressions.folder import impression_files
from service.impressions.line import LineSettings
from service.impressions.writer import ImpressionLog
from service.metrics.metrics import Metrics
from service.metrics.model_metrics import ModelMetrics
from service.models.version import ServedModel
from service.rank.question import Question
from service.rank.scored_request import EncodedRequest, ScoredRequest
from service.rank.wire import Options
from service.settings import read_settings
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.impressions.impressions_read import lines_of
from tests.service.in_process import client_of, sample
from tests.service.open_inference.tensors import INFER, Given, binary_body, tensors_of
from tests.service.running import RunningService
from tests.training_data import small_disk

ROWS = [
    {"id": "a", "features": {"video_id": 3, "tag": "x"}},
    {"id": "b", "features": {"video_id": 9, "topics": [7, 8]}},
]


def counted(client: httpx.Client, result: str) -> float:
    values = {
        sample.labels["result"]: sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name == "ranking_impression_log_total"
    }
    return values[result]


def spread(column: list[Any], order: list[str], ids: list[str]) -> list[Any]:
    """A column of an answer in the order of the request."""
    return [column[order.index(identifier)] for identifier in ids]


def test_a_line_is_the_request_its_versions_and_its_scores(tmp_path: Path) -> None:
    publish_artifact(tmp_path / "models")
    folder = tmp_path / "log"
    folder.mkdir()
    spaced = json.dumps({**TINY_REQUEST, "request_id": "r-1", "top_k": 2}, indent=1)
    with RunningService(tmp_path / "models", "--impression-log", str(folder)) as service:
        service.wait_ready()
        whole = service.client.post("/v1/rank", json=TINY_REQUEST).json()["candidates"]
        answers = [
            service.client.post("/v1/rank", content=spaced).json(),
            service.client.post("/v1/rank", json={**TINY_REQUEST, "request_id": "r-2", "candidates": ROWS}).json(),
        ]
        assert service.client.post("/v1/rank", json={**TINY_REQUEST, "user": 1}).status_code == 422
        service.wait_for(lambda: counted(service.client, "written") == 3)
        assert impression_files(folder).whole_files() == []
        assert service.stop(signal.SIGTERM) == 0
    _, columns, rows = lines_of(folder)
    for line, answer in zip((columns, rows), answers, strict=True):
        for key in ("request_id", "model", "model_version", "value_model", "value_model_version"):
            assert line[key] == answer[key]
        assert line["user"] == TINY_REQUEST["user"]
    assert columns["candidates"] == TINY_REQUEST["candidates"]
    assert columns["top_k"] == 2
    # All candidates, cut or not, in the order of the request, to the last digit of the answer.
    assert columns["score"] == spread(whole["score"], whole["id"], list("abcd"))
    for task, column in whole["tasks"].items():
        assert columns["tasks"][task] == spread(column, whole["id"], list("abcd"))
    assert rows["candidates"]["id"] == ["a", "b"]
    assert rows["candidates"]["features"] == {"video_id": [3, 9], "tag": ["x", None], "topics": [None, [7, 8]]}
    ranked = answers[1]["candidates"]
    assert rows["score"] == spread([row["score"] for row in ranked], [row["id"] for row in ranked], ["a", "b"])


def test_tensors_are_logged_as_the_columns_that_they_are(tmp_path: Path) -> None:
    publish_artifact(tmp_path / "models")
    folder = tmp_path / "log"
    folder.mkdir()
    # FP32 holds these numbers as they are.
    features = {
        "video_id": [3, 2**63 - 1, -4],
        "tag": ["x", "", "ünï☃"],
        "topics": [[7], [], [8, 9, 7]],
        "duration_ms": [8000.0, 31000.5, 0.0],
    }
    given = {"user": TINY_REQUEST["user"], "candidates": {"id": ["0", "1", "2"], "features": features}}
    tensors = tensors_of(given)
    nulled = [Given(one.name, one.datatype, [None, "y", "z"]) if one.name == "tag" else one for one in tensors]
    body, headers = binary_body(tensors, id="r-2")
    with RunningService(tmp_path / "models", "--impression-log", str(folder)) as service:
        service.wait_ready()
        for name, one in (("r-1", tensors), ("r-3", nulled)):
            content = {"id": name, "inputs": [tensor.as_json() for tensor in one]}
            service.client.post(INFER, json=content).raise_for_status()
        service.client.post(INFER, content=body, headers=headers).raise_for_status()
        refused = {"inputs": [tensor.as_json() for tensor in tensors[:1]]}
        assert service.client.post(INFER, json=refused).status_code == 400
        service.wait_for(lambda: counted(service.client, "written") == 3)
        again = service.client.post("/v1/rank", json=given).json()["candidates"]
        assert service.stop(signal.SIGTERM) == 0
    lines = {line["request_id"]: line for line in lines_of(folder)}
    for name in ("r-1", "r-2"):
        assert lines[name]["user"] == given["user"]
        assert lines[name]["candidates"] == given["candidates"]
        assert lines[name]["catalogue"] is None
        # A logged request, sent to /v1, is answered alike.
        assert lines[name]["score"] == spread(again["score"], again["id"], ["0", "1", "2"])
        for task, column in again["tasks"].items():
            assert lines[name]["tasks"][task] == spread(column, again["id"], ["0", "1", "2"])
    assert lines["r-3"]["candidates"]["features"] == {**features, "tag": [None, "y", "z"]}


def test_nothing_is_logged_unless_it_is_switched_on(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with client_of(tmp_path) as client:
        assert client.post("/v1/rank", json=TINY_REQUEST).status_code == 200
        assert sample(client, "ranking_impression_log_total", result="written") == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_not_there_is_refused_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_settings(["--models", str(tmp_path), "--impression-log", str(tmp_path / "nowhere")], {})
    assert "--impression-log (FEEDRANK_IMPRESSION_LOG): no folder" in capsys.readouterr().err


def test_a_killed_service_loses_no_line_that_it_had_written(tmp_path: Path) -> None:
    publish_artifact(tmp_path / "models")
    folder = tmp_path / "log"
    folder.mkdir()
    with RunningService(tmp_path / "models", "--impression-log", str(folder)) as service:
        service.wait_ready()
        for number in range(7):
            service.client.post("/v1/rank", json={**TINY_REQUEST, "request_id": f"r-{number}"})
        service.wait_for(lambda: counted(service.client, "written") == 7)
        os.kill(service.process.pid, signal.SIGKILL)
        service.wait()
    assert impression_files(folder).whole_files() == []
    with client_of(tmp_path / "models", impression_log=folder):
        pass  # the next service names what the last one left
    assert [line["request_id"] for line in lines_of(folder)] == [f"r-{number}" for number in range(7)]


def test_a_full_disk_costs_lines_and_no_request(tmp_path: Path) -> None:
    publish_artifact(tmp_path / "models")
    body = copy.deepcopy(TINY_REQUEST)
    body["user"]["country"] = "x" * 20_000
    with (
        small_disk(tmp_path / "disk", 256) as folder,
        RunningService(tmp_path / "models", "--impression-log", str(folder)) as service,
    ):
        service.wait_ready()
        while counted(service.client, "failed") < 3:
            assert service.client.post("/v1/rank", json=body).status_code == 200
        written = int(counted(service.client, "written"))
        assert 0 < written <= 256 * 1024 / 20_000
        (told,) = service.log_lines("feedrank.impressions")
        assert told["reason"] == "No space left on device"
        # Room again: it goes on by itself.
        (part,) = folder.glob(".*.part")
        assert len(part.read_bytes().splitlines()) == written
        os.truncate(part, 0)

        def is_written_again() -> bool:
            assert service.client.post("/v1/rank", json=body).status_code == 200
            return counted(service.client, "written") > written

        service.wait_for(is_written_again)
        failed = counted(service.client, "failed")
        assert service.stop(signal.SIGTERM) == 0
        # Every request that failed is said to be lost, in the log itself.
        losses = [line for line in lines_of(folder) if "lost" in line]
        assert sum(loss["lost"] for loss in losses) == failed
        assert {loss["reason"] for loss in losses} == {"No space left on device"}
        assert not any("Traceback" in line for line in service.log)


@pytest.fixture
def blocked_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk on which the first write waits until the event is set, or the test is over."""
    is_free = threading.Event()
    real = os.write

    def write(descriptor: int, data: Any) -> int:
        if threading.current_thread().name == "impressions":
            is_free.wait()
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    yield is_free
    is_free.set()


def test_a_disk_that_hangs_costs_lines_and_no_request(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    blocked_disk: threading.Event,
) -> None:
    publish_artifact(tmp_path / "models")
    folder = tmp_path / "log"
    folder.mkdir()
    monkeypatch.setattr("service.impressions.writer.MAX_HELD_BYTES", 5_000)
    monkeypatch.setattr("service.impressions.writer.DRAIN_SECONDS", 0.2)
    requests = 40
    with caplog.at_level(logging.WARNING, "feedrank"):
        with client_of(tmp_path / "models", impression_log=folder) as client:
            for _ in range(requests):
                assert client.post("/v1/rank", json=TINY_REQUEST).status_code == 200
            dropped = sample(client, "ranking_impression_log_total", result="dropped")
            assert sample(client, "ranking_impression_log_total", result="written") == 0
            # What is held is bounded: 5,000 bytes of requests of about 300.
            assert requests - 20 <= dropped < requests
            began = time.monotonic()
        assert time.monotonic() - began < 10  # the drain gave up. The disk would never have answered
    told = [record.fields for record in caplog.records if record.name == "feedrank.impressions"]  # type: ignore[attr-defined]
    # At once, when waiting was given up, and at the very end: never a line for every line that is lost.
    assert len(told) <= 3
    assert sum(fields["dropped"] for fields in told) == requests


def test_what_waited_is_written_when_the_disk_answers_again(tmp_path: Path, blocked_disk: threading.Event) -> None:
    publish_artifact(tmp_path / "models")
    folder = tmp_path / "log"
    folder.mkdir()
    with client_of(tmp_path / "models", impression_log=folder) as client:
        for number in range(10):
            client.post("/v1/rank", json={**TINY_REQUEST, "request_id": f"r-{number}"})
        assert sample(client, "ranking_impression_log_total", result="written") == 0
        blocked_disk.set()
    assert [line["request_id"] for line in lines_of(folder)] == [f"r-{number}" for number in range(10)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    scorer = Scorer.load(publish_artifact(tmp_path_factory.mktemp("models")))
    return ServedModel(
        "tiny", scorer, ValueModels.built_in(scorer.domain), None, ModelMetrics(Metrics(), "tiny", scorer)
    )


def _scored(served: ServedModel, request_id: str, user: dict[str, Any] | None = None) -> ScoredRequest:
    """A request of one candidate, answered with zeros."""
    question = Question(Options(), user or {}, ["a"], {})
    encoded = EncodedRequest(request_id, served, DEFAULT, question, {}, *served.scorer.encode({}, {}, 1), 100)
    zeros_NO = np.zeros((1, len(served.scorer.outputs)), np.float32)
    return ScoredRequest(encoded, Scored(zeros_NO, {}, {}, zeros_NO), np.zeros(1))


def _log(folder: Path, metrics: Metrics, share: float = 1.0) -> ImpressionLog:
    settings = LineSettings(share, is_hashed=False, user_hash_key=None)
    return ImpressionLog(folder, metrics, Clock(), settings, max_bytes=2**20, workers=1)


def _taken(log: ImpressionLog, scored: ScoredRequest) -> RequestRecord:
    record = RequestRecord(scored.encoded.request_id, "/v1/rank")
    log.take_request(record, scored)
    return record


def test_the_sample_is_a_share_and_goes_by_the_request_id(tmp_path: Path, served: ServedModel) -> None:
    logs = [_log(tmp_path, Metrics(), s) for s in (0.25, 0.25, 1.0, 1e-9)]
    ids = [f"r-{number}" for number in range(4000)]
    scored = {name: _scored(served, name) for name in ids}
    quarter, again, everything, hardly = (
        {name for name in ids if _taken(log, scored[name]).after_answer} for log in logs
    )
    # Five standard deviations of 4,000 throws at a quarter are 137.
    assert abs(len(quarter) - 1000) < 137
    assert quarter == again
    assert everything == set(ids)
    assert hardly == set()


def test_a_request_that_cannot_be_written_costs_itself_alone(tmp_path: Path, served: ServedModel) -> None:
    metrics = Metrics()
    log = _log(tmp_path, metrics)
    wrong = _scored(served, "wrong", {"x": object()})
    huge = _scored(served, "huge", {"x": "x" * 2**20})  # more than a file may have
    for scored in (wrong, huge, _scored(served, "right")):
        record = _taken(log, scored)
        record.run_after_answer()
    log.start()
    log.stop()
    right, *losses = lines_of(tmp_path)
    assert right["request_id"] == "right"
    assert {loss["reason"]: loss["lost"] for loss in losses} == {
        "not JSON": 1,
        "a line is over the 131072 bytes of a file": 1,
    }
    counts = {result: metrics.impressions.labels(result)._value.get() for result in ("written", "dropped", "failed")}
    assert counts == {"written": 1, "dropped": 0, "failed": 2}


def test_a_request_is_freed_with_its_line(tmp_path: Path, served: ServedModel) -> None:
    """Without the garbage collector, which a worker seldom runs."""
    log = _log(tmp_path, Metrics())
    scored = _scored(served, "r-1")
    freed = weakref.ref(scored.score_N)
    record = _taken(log, scored)
    gc.disable()
    try:
        record.run_after_answer()
        log.start()
        log.stop()
        del record, scored
        assert freed() is None
    finally:
        gc.enable()
    assert [line["request_id"] for line in lines_of(tmp_path)] == ["r-1"]


def test_the_folder_stays_within_its_bound_and_removals_are_counted(
    tmp_path: Path, served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics()
    log = _log(tmp_path, metrics)
    monkeypatch.setattr(log._conversion, "start", lambda: None)  # Parquet of equal features takes next to nothing
    log.start()
    for number in range(300):
        _taken(log, _scored(served, f"r-{number}", {"x": "x" * 10_000})).run_after_answer()
    log.stop()
    kept = lines_of(tmp_path)
    assert [line["request_id"] for line in kept] == [f"r-{number}" for number in range(300 - len(kept), 300)]
    assert 2**19 < sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2**20
    assert metrics.impression_files_removed._value.get() > 0
