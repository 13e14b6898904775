"""The admin API: labels that are set over HTTP, what is refused with nothing changed, and who follows."""

import fcntl
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from starlette.testclient import TestClient

from model.buckets import bucket_of
from model.rollout.labels import FILE_NAME
from model.scorer.scorer import Scorer
from tests.artifacts import TINY_REQUEST, publish_artifact, publish_artifacts
from tests.service.in_process import client_of, sample
from tests.service.models.test_store import flip_a_byte
from tests.service.running import RunningService

PATH = "/v1/admin/models/tiny/labels"
KEY = "feedrank_operator"
HEADERS = {"Authorization": f"Bearer {KEY}"}
WAIT_SECONDS = 60.0


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = publish_artifacts(tmp_path_factory.mktemp("published"), 3)
    flip_a_byte(publish_artifact(models, seed=3))
    return models


@pytest.fixture
def models(tmp_path: Path, published: Path) -> Path:
    """A models folder with three versions of `tiny`, and a fourth that is damaged."""
    return shutil.copytree(published, tmp_path / "models")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    entry = {"name": "operator", "scopes": ["admin"], "sha256": hashlib.sha256(KEY.encode()).hexdigest()}
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"keys": [entry]}))
    return tmp_path / "keys.yaml"


@pytest.fixture
def client(models: Path, keys: Path) -> Iterator[TestClient]:
    with operated(models, keys) as client:
        yield client


@contextmanager
def operated(models: Path, keys: Path) -> Iterator[TestClient]:
    """A client of a service, with an admin's key."""
    with client_of(models, keys_file=keys) as client:
        client.headers.update(HEADERS)
        yield client


def version_of(client: TestClient, **more: Any) -> str:
    answer = client.post("/v1/rank", json={**TINY_REQUEST, **more})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["model_version"])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def test_labels_are_in_force_when_the_answer_comes_and_after_a_restart(
    client: TestClient, models: Path, keys: Path
) -> None:
    assert version_of(client) == "3"
    labels = {"stable": "1", "canary": {"version": "2", "share": 0.5}, "shadow": "3"}
    answer = client.put(PATH, json=labels)
    assert answer.status_code == 200
    assert answer.json()["labels"] == labels
    assert answer.json()["default_version"] == "1"

    def holds(service: TestClient) -> None:
        assert service.get("/v1/models/tiny").json()["labels"] == labels
        for number in range(20):
            expected = "2" if bucket_of("tiny/2", f"r{number}") < 5000 else "1"
            assert version_of(service, request_id=f"r{number}") == expected
        assert version_of(service, version="shadow") == "3"
        infer = service.get("/v2/models/tiny").json()
        assert infer["versions"] == ["3", "2", "1"]

    holds(client)
    with operated(models, keys) as again:
        holds(again)
    assert client.put(PATH, json={"stable": None}).json()["labels"] == {}
    assert version_of(client) == "3"


def test_a_put_takes_no_stable_pin_away_without_a_word(client: TestClient, models: Path) -> None:
    """All traffic would move to the newest version."""
    labels = {"stable": "1", "canary": {"version": "2", "share": 0.0}, "shadow": "3"}
    assert client.put(PATH, json=labels).status_code == 200
    before = (models / "tiny" / FILE_NAME).read_bytes()
    for body in ({"shadow": "2"}, {}):
        answer = client.put(PATH, json=body)
        assert answer.status_code == 422
        [fault] = answer.json()["errors"]
        assert fault["path"] == "stable"
        assert "version 1 is pinned" in fault["message"]
    assert (models / "tiny" / FILE_NAME).read_bytes() == before
    assert version_of(client) == "1"
    answer = client.put(PATH, json={"stable": None, "shadow": "2"})
    assert answer.json()["labels"] == {"shadow": "2"}
    assert version_of(client) == "3"
    assert client.put(PATH, json={}).json()["labels"] == {}  # what is not pinned goes without a word


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"stable": "1", "stable": null}', "'stable' is given twice"),
        ('{"canary": {"version": "2", "share": 0.1, "share": 1}}', "'share' is given twice"),
        ('{"stable": "1", "x": 1, "x": 2}', "a key is given twice"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(client: TestClient, body: str, said: str) -> None:
    assert client.put(PATH, headers=HEADERS, json={"stable": "2"}).status_code == 200
    for send in (client.put, client.patch):
        answer = send(PATH, headers=HEADERS, content=body)
        assert answer.status_code == 422
        assert said in answer.json()["detail"]
    assert client.patch(PATH, headers=HEADERS, json={}).json()["labels"] == {"stable": "2"}


def test_a_refused_share_is_named_with_its_value(client: TestClient) -> None:
    [fault] = client.put(PATH, json={"canary": {"version": "2", "share": 1.5}}).json()["errors"]
    assert fault["path"] == "canary.share"
    assert fault["message"].endswith(", got 1.5")


def test_a_patch_changes_what_it_names_and_nothing_else(client: TestClient) -> None:
    labels = {"stable": "1", "canary": {"version": "2", "share": 0.5}, "shadow": "3"}
    client.put(PATH, json=labels)
    steps: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"shadow": "2"}, {**labels, "shadow": "2"}),
        ({"canary": {"share": 0.25}}, {**labels, "canary": {"version": "2", "share": 0.25}, "shadow": "2"}),
        ({}, {**labels, "canary": {"version": "2", "share": 0.25}, "shadow": "2"}),
        ({"canary": None, "stable": "3"}, {"stable": "3", "shadow": "2"}),
        ({"stable": None}, {"shadow": "2"}),
        ({"shadow": None}, {}),
    ]
    for changes, expected in steps:
        answer = client.patch(PATH, json=changes, headers={"Content-Type": "application/merge-patch+json"})
        assert (answer.status_code, answer.json().get("labels")) == (200, expected)


@pytest.mark.parametrize(
    ("body", "status", "place"),
    [
        ({"stable": None}, 422, "$"),  # the canary needs it
        ({"canary": {"share": 7}}, 422, "canary.share"),
        ({"canary": {"share": None}}, 422, "canary.share"),
        ({"canary": "2"}, 422, "canary"),
        ({"stabel": "1"}, 422, "$"),
        ({"shadow": "9"}, 404, "shadow"),
        ({"shadow": "4"}, 409, "shadow"),
    ],
)
def test_a_patch_that_cannot_be_changes_nothing(
    client: TestClient, models: Path, body: Any, status: int, place: str
) -> None:
    client.put(PATH, json={"stable": "1", "canary": {"version": "2", "share": 0.5}})
    before = (models / "tiny" / FILE_NAME).read_bytes()
    answer = client.patch(PATH, json=body)
    assert answer.status_code == status
    assert [fault["path"] for fault in answer.json()["errors"]] == [place]
    assert (models / "tiny" / FILE_NAME).read_bytes() == before


def test_a_lock_that_somebody_keeps_is_said_and_holds_up_no_poll(
    client: TestClient, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.rollout.locks.LOCK_SECONDS", 0.1)
    folder = os.open(models / "tiny", os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        answer = client.put(PATH, json={"stable": "1"})
        assert answer.status_code == 500
        assert "labels.yaml cannot be written (Resource temporarily unavailable)" in answer.json()["detail"]
        assert version_of(client) == "3"
    finally:
        os.close(folder)
    assert client.put(PATH, json={"stable": "1"}).status_code == 200


def test_patches_of_two_processes_lose_nothing(client: TestClient, models: Path, keys: Path) -> None:
    """Each reads the file again before it writes, and writes only over what it has read."""
    with operated(models, keys) as other:
        client.put(PATH, json={"stable": "1", "canary": {"version": "2", "share": 0.0}})

        def patch(service: TestClient, changes: dict[str, Any]) -> None:
            for _ in range(10):
                assert service.patch(PATH, json=changes).status_code == 200

        parts = ((client, {"shadow": "3"}), (other, {"canary": {"share": 0.5}}))
        threads = [threading.Thread(target=patch, args=part) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    expected = {"stable": 1, "canary": {"version": 2, "share": 0.5}, "shadow": 3}
    assert yaml.safe_load((models / "tiny" / FILE_NAME).read_text()) == expected


@pytest.mark.parametrize(
    ("body", "status", "place"),
    [
        ({"stable": "9"}, 404, "stable"),
        ({"stable": "1", "canary": {"version": "9", "share": 0.5}}, 404, "canary"),
        ({"stable": "4"}, 409, "stable"),
        ({"stable": "1", "shadow": "4"}, 409, "shadow"),
        ({"stable": "x"}, 422, "stable"),
        ({"stable": True}, 422, "$"),
        ({"stable": {"version": "1"}}, 422, "stable"),
        ({"stable": "1", "canary": "2"}, 422, "canary"),
        ({"stable": "1", "canary": {"version": "2"}}, 422, "canary.share"),
        ({"stable": "1", "canary": {"version": "2", "share": -0.1}}, 422, "canary.share"),
        ({"stable": "1", "canary": {"version": "2", "share": "0.1"}}, 422, "canary.share"),
        ({"canary": {"version": "2", "share": 0.1}}, 422, "$"),
        ({"stabel": "1"}, 422, "$"),
        ([], 422, "$"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_changes(
    client: TestClient, models: Path, body: Any, status: int, place: str
) -> None:
    assert client.put(PATH, json={"stable": "2"}).status_code == 200
    before = (models / "tiny" / FILE_NAME).read_bytes()
    answer = client.put(PATH, json=body)
    assert answer.status_code == status
    problem = answer.json()
    assert [fault["path"] for fault in problem["errors"]] == [place]
    assert str(models) not in answer.text
    assert (models / "tiny" / FILE_NAME).read_bytes() == before
    entry = client.get("/v1/models/tiny").json()
    assert entry["labels"] == {"stable": "2"}
    assert {version["version"] for version in entry["versions"] if version["state"] == "ready"} == {"2"}
    assert version_of(client) == "2"


def test_other_refusals(client: TestClient, models: Path) -> None:
    assert client.put("/v1/admin/models/none/labels", json={}).status_code == 404
    assert client.put(PATH, content=b"{").status_code == 400
    assert client.put(PATH, content=b" " * 70_000).status_code == 413
    assert client.put(PATH, content=b"{}", headers={"Content-Encoding": "gzip"}).status_code == 415
    assert client.post(PATH, json={}).status_code == 405
    del client.headers["Authorization"]
    assert client.put(PATH, json={}).status_code == 401
    with client_of(models) as open_service:  # without keys the admin API is off
        assert open_service.put(PATH, json={"stable": "1"}).status_code == 403
    assert not (models / "tiny" / FILE_NAME).exists()


def test_a_folder_that_cannot_be_written_to_is_said(client: TestClient, models: Path) -> None:
    (models / "tiny" / FILE_NAME).mkdir()
    answer = client.put(PATH, json={"stable": "1"})
    assert answer.status_code == 500
    assert FILE_NAME in answer.json()["detail"]
    assert version_of(client) == "3"
    assert not list((models / "tiny").glob(".labels-*"))


def test_another_process_on_the_same_folder_follows(client: TestClient, models: Path, keys: Path) -> None:
    with operated(models, keys) as other:
        client.put(PATH, json={"stable": "1"})
        until(lambda: version_of(other) == "1")
        (models / "tiny" / FILE_NAME).write_text("{stable: 2, canary: {version: 1, share: 1.0}}")  # by hand
        until(lambda: version_of(client) == version_of(other) == "1" and version_of(other, version="stable") == "2")


def test_labels_are_counted_and_the_route_is_measured(client: TestClient, models: Path) -> None:
    client.put(PATH, json={"stable": "1"})
    assert sample(client, "ranking_model_load_total", result="labels_ready") == 1
    (models / "tiny" / FILE_NAME).write_text("stable: -")
    until(lambda: sample(client, "ranking_model_load_total", result="labels_refused") == 1)
    assert "labels.yaml" in client.get("/v1/models/tiny").json()["labels_error"]
    endpoint = "/v1/admin/models/{name}/labels"
    assert sample(client, "ranking_requests_total", endpoint=endpoint, code="200") == 1


def test_every_answer_during_swaps_is_of_exactly_one_version(client: TestClient, models: Path) -> None:
    request = {**TINY_REQUEST, "value_model": "default"}
    columns = TINY_REQUEST["candidates"]
    expected = {
        version: Scorer.load(models / "tiny" / version).score_values(TINY_REQUEST["user"], columns["features"], 4)
        for version in ("1", "2")
    }
    client.put(PATH, json={"stable": "1"})
    answers: list[Any] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            answers.append(client.post("/v1/rank", json=request))

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    for swap in range(10):
        assert client.put(PATH, json={"stable": "2" if swap % 2 == 0 else "1"}).status_code == 200
    is_over.set()
    for asker in askers:
        asker.join()
    assert {answer.status_code for answer in answers} == {200}
    for answer in answers:
        told = answer.json()
        clicks = dict(zip(told["candidates"]["id"], told["candidates"]["tasks"]["click"], strict=True))
        given = [clicks[name] for name in columns["id"]]
        # Answers are written with the digits of float32, which the scorer computes in. 1e-6 is above its rounding.
        np.testing.assert_allclose(given, expected[told["model_version"]][:, 0], atol=1e-6)
    assert {answer.json()["model_version"] for answer in answers} == {"1", "2"}


def test_every_worker_of_a_service_follows(models: Path, keys: Path) -> None:
    with RunningService(models, "--keys-file", str(keys), "--workers", "2", "--threads", "1") as service:
        service.client.headers.update(HEADERS)
        service.wait_ready()
        assert service.client.put(PATH, json={"stable": "1"}).status_code == 200

        def answered() -> set[str]:
            # A connection each: the system shares new ones out among the workers.
            headers = {**HEADERS, "Connection": "close"}
            return {
                service.client.post("/v1/rank", json=TINY_REQUEST, headers=headers).json()["model_version"]
                for _ in range(20)
            }

        service.wait_for(lambda: answered() == {"1"})
        service.wait_for(lambda: loads(service) == 2)
        assert answered() == {"1"}


def loads(service: RunningService) -> float:
    """Number of workers that have loaded labels."""
    text = service.client.get("/metrics").text
    lines = [
        line for line in text.splitlines() if line.startswith("ranking_model_load_total") and "labels_ready" in line
    ]
    return float(lines[0].split()[-1])
