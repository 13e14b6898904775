"""Log lines: whole JSON objects that say what happened, and never what a user or a candidate is."""

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from service.base.log import LOGGER, JsonFormatter, logging_config
from tests.artifacts import publish_artifact
from tests.service.in_process import client_of

SECRETS = ("770077", "xq7country", "xq7candidate", "xq7tag", "660066")
REQUEST = {
    "user": {"user_id": 770077, "country": "xq7country", "history": [660066]},
    "candidates": {"id": ["xq7candidate"], "features": {"tag": ["xq7tag"]}},
}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    publish_artifact(tmp_path)
    with client_of(tmp_path) as client:
        yield client


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    texts = [JsonFormatter().format(record) for record in caplog.records]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def test_a_scored_request_is_one_line_with_both_versions(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        answer = client.post("/v1/rank", json={**REQUEST, "request_id": "r-9"}).json()
    (line,) = [line for line in lines(caplog) if line["logger"] == f"{LOGGER}.requests"]
    assert line["request_id"] == "r-9"
    assert line["model_version"] == answer["model_version"]
    assert line["value_model_version"] == answer["value_model_version"]
    assert (line["model"], line["candidates"], line["status"], line["endpoint"]) == ("tiny", 1, 200, "/v1/rank")
    assert isinstance(line["seconds"], float)
    assert 0 < line["seconds"] < 60


def test_no_feature_value_and_no_id_is_logged(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, LOGGER):
        client.post("/v1/rank", json=REQUEST)
        client.post("/v1/rank", json={**REQUEST, "user": {"user_id": "xq7country", "tab": "770077"}})
        client.post("/v1/rank", json={**REQUEST, "top_k": "660066"})
        client.post("/v1/rank", content=json.dumps(REQUEST)[:-2])
    text = "\n".join(map(json.dumps, lines(caplog)))
    assert text.count('"endpoint"') == 4
    assert [secret for secret in SECRETS if secret in text] == []


def test_probes_are_logged_at_debug_alone(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        for path in ("/healthz", "/readyz", "/metrics"):
            client.get(path)
    assert [line for line in lines(caplog) if line["logger"] == f"{LOGGER}.requests"] == []


def test_an_error_is_a_problem_for_the_client_and_a_traceback_for_the_log(
    client: TestClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("service.pipeline.read_features", broken)
    response = client.post("/v1/rank", json=REQUEST, headers={"X-Request-Id": "r-bug"})
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["request_id"] == "r-bug"
    assert "ZeroDivisionError" not in response.text
    (line,) = [line for line in lines(caplog) if "traceback" in line]
    assert "ZeroDivisionError: a bug" in str(line["traceback"])
    assert line["request_id"] == "r-bug"
    assert client.get("/healthz").status_code == 200


@given(st.floats(0, 1e11) | st.integers(0, 10**11).map(lambda ms: ms / 1e3) | st.just(1.9999996))
def test_a_line_has_the_time_of_its_record_in_iso_8601(created: float) -> None:
    record = logging.makeLogRecord({"created": created})
    expected = datetime.fromtimestamp(created, UTC).isoformat(timespec="milliseconds")
    assert json.loads(JsonFormatter().format(record))["time"] == expected


def test_levels_are_those_of_the_flag() -> None:
    config = logging_config("warning")
    assert {logger["level"] for logger in config["loggers"].values()} == {"WARNING"}
