"""Experiments in the service: the arm decides what answers, on both wires, and is in answer, logs and metrics."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash
import yaml
from starlette.testclient import TestClient

from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.impressions.impressions_read import lines_of
from tests.service.in_process import client_of, request_lines, sample, samples
from tests.service.open_inference.tensors import INFER, tensors_of

REQUESTS = "ranking_experiment_requests_total"
WAIT_SECONDS = 60.0
WEIGHTS = {"default": {"click": 1.0}, "bold": {"like": 1.0}, "odd": {"click": -1.0}}
VALUES = {
    "name": "values",
    "layer": "first",
    "buckets": {"from": 0, "to": 5000},
    "start": "2026-01-01",
    "horizon": "24h",
    "realised": {"click": 1.0},
    "arms": {"control": {}, "bold": {"value_model": "bold"}},
}
VERSIONS = {
    **VALUES,
    "name": "versions",
    "layer": "second",
    "buckets": {"from": 0, "to": 10_000},
    "arms": {"control": {}, "newer": {"version": 2}},
}
LAYERS = {"first": {"salt": "one", "unit": "user_id"}, "second": {"salt": "two", "unit": "country"}}
CANDIDATES = {"id": ["a", "b"], "features": {"video_id": [3, 9], "duration_ms": [8000, 31000]}}


def _bucket(salt: str, unit: object) -> int:
    return int(xxhash.xxh3_64_intdigest(f"{salt}\0{unit}".encode())) % 10_000


# Units of each kind, found by the documented rule.
INSIDE = {
    arm: next(
        user for user in range(1000) if _bucket("one", user) < 5000 and (_bucket("values", user) < 5000) == is_first
    )
    for arm, is_first in (("bold", True), ("control", False))
}
OUTSIDE = next(user for user in range(1000) if _bucket("one", user) >= 5000)
COUNTRY = {
    arm: next(text for text in map(str, range(100)) if (_bucket("versions", text) < 5000) == is_first)
    for arm, is_first in (("control", True), ("newer", False))
}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    for seed in range(2):
        publish_artifact(folder, seed=seed, user="user_id")
    models = {name: {"kind": "weighted_sum", "weights": weights} for name, weights in WEIGHTS.items()}
    (folder / "tiny" / "value_models.yaml").write_text(yaml.safe_dump(models))
    (folder / "tiny" / "labels.yaml").write_text("{stable: 1}")
    put(folder, VALUES)
    return folder


def put(models: Path, *experiments: dict[str, Any], **more: Any) -> None:
    content = {"layers": LAYERS, "experiments": list(experiments), **more}
    (models / "tiny" / "experiments.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture
def client(models: Path) -> Iterator[TestClient]:
    with client_of(models) as client:
        yield client


def wait_until(is_so: Callable[[], object]) -> None:
    ends_at = time.monotonic() + WAIT_SECONDS
    while not is_so():
        assert time.monotonic() < ends_at, "it never came true"
        time.sleep(0.005)


def rank(client: TestClient, user: dict[str, Any], **more: Any) -> dict[str, Any]:
    answer = client.post("/v1/rank", json={"user": user, "candidates": CANDIDATES, **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def counted(client: TestClient, name: str, **labels: str) -> float:
    return sample(client, name, model="tiny", **labels)


def test_the_arm_decides_the_value_model_and_stands_in_the_answer(client: TestClient) -> None:
    for arm, value_model in (("control", "default"), ("bold", "bold")):
        for unit in (INSIDE[arm], str(INSIDE[arm])):
            answer = rank(client, {"user_id": unit})
            assert answer["experiments"] == {"values": arm}
            assert answer["value_model"] == value_model
            output = next(iter(WEIGHTS[value_model]))
            assert answer["candidates"]["score"] == pytest.approx(answer["candidates"]["tasks"][output], rel=1e-6)
        assert counted(client, REQUESTS, experiment="values", arm=arm, code="200") == 2
    assert "experiments" not in rank(client, {"user_id": OUTSIDE})
    refused = client.post("/v1/rank", json={"user": {"user_id": INSIDE["bold"], "tab": "x"}, "candidates": CANDIDATES})
    assert refused.status_code == 422
    assert counted(client, REQUESTS, experiment="values", arm="bold", code="422") == 1


def test_tensors_have_the_arm_among_their_parameters(client: TestClient) -> None:
    def infer(user: int, **parameters: str) -> dict[str, Any]:
        inputs = [tensor.as_json() for tensor in tensors_of({"user": {"user_id": user}, "candidates": CANDIDATES})]
        answer = client.post(INFER, json={"inputs": inputs, "parameters": parameters})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()["parameters"]
        return found

    assert infer(INSIDE["bold"])["experiments.values"] == "bold"
    assert infer(INSIDE["bold"])["value_model"] == "bold"
    assert "experiments.values" not in infer(INSIDE["bold"], value_model="odd")
    assert counted(client, REQUESTS, experiment="values", arm="bold", code="200") == 2


def test_a_request_that_names_a_value_model_leaves_the_experiment(client: TestClient) -> None:
    answer = rank(client, {"user_id": INSIDE["bold"]}, value_model="default")
    assert "experiments" not in answer
    assert answer["value_model"] == "default"
    assert rank(client, {"user_id": INSIDE["bold"]}, version="1")["experiments"] == {"values": "bold"}
    assert counted(client, "ranking_experiment_left_out_total", experiment="values", reason="named") == 1


def test_a_request_without_a_unit_is_in_no_experiment(client: TestClient) -> None:
    for user in ({}, {"user_id": None}):
        assert "experiments" not in rank(client, user)
    assert counted(client, "ranking_experiment_left_out_total", experiment="values", reason="no_unit") == 2
    assert sum(samples(client, REQUESTS).values()) == 0


def test_an_arm_has_its_version_loaded_and_its_units_are_none_of_the_canary(models: Path) -> None:
    put(models, VALUES, VERSIONS)
    (models / "tiny" / "labels.yaml").write_text("{stable: 1, canary: {version: 2, share: 1}}")
    with client_of(models) as client:
        for arm, version in (("control", "1"), ("newer", "2")):
            answer = rank(client, {"user_id": OUTSIDE, "country": COUNTRY[arm]})
            assert (answer["experiments"], answer["model_version"]) == ({"versions": arm}, version)
        assert rank(client, {"user_id": OUTSIDE})["model_version"] == "2"
        both = rank(client, {"user_id": INSIDE["bold"], "country": COUNTRY["newer"]})
        assert both["experiments"] == {"values": "bold", "versions": "newer"}
        assert (both["model_version"], both["value_model"]) == ("2", "bold")
        named = rank(client, {"user_id": OUTSIDE, "country": COUNTRY["newer"]}, version="1")
        assert "experiments" not in named
    (models / "tiny" / "labels.yaml").write_text("{stable: 1}")
    with client_of(models) as client:
        assert rank(client, {"country": COUNTRY["newer"]})["model_version"] == "2"
        states = {one["version"]: one["state"] for one in client.get("/v1/models/tiny").json()["versions"]}
        assert states == {"1": "ready", "2": "ready"}


@pytest.mark.parametrize("version", ["canary", 7])
def test_an_arm_whose_version_is_not_ready_is_answered_by_stable_and_counted(
    models: Path, tmp_path: Path, version: int | str, caplog: pytest.LogCaptureFixture
) -> None:
    arms = {"control": {}, "newer": {"version": version, "value_model": "bold"}}
    put(models, {**VERSIONS, "arms": arms})
    (tmp_path / "log").mkdir()
    (tmp_path / "key").write_text("k" * 32)
    caplog.set_level(logging.INFO)
    settings = {"impression_log": tmp_path / "log", "user_hash_key": tmp_path / "key"}
    with client_of(models, **settings) as client:
        answer = rank(client, {"user_id": 1, "country": COUNTRY["newer"]})
        assert answer["experiments"] == {"versions": "newer"}
        # The arm falls back as a whole: half of it would be neither arm.
        assert (answer["model_version"], answer["value_model"]) == ("1", "default")
        rank(client, {"user_id": 1, "country": COUNTRY["control"]})
        assert counted(client, "ranking_experiment_fell_back_total", experiment="versions", arm="newer") == 1
        assert counted(client, "ranking_experiment_fell_back_total", experiment="versions", arm="control") == 0
    first, second = lines_of(tmp_path / "log")
    assert (first["experiments"], first["fell_back"]) == ({"versions": "newer"}, ["versions"])
    assert (second["experiments"], second["fell_back"]) == ({"versions": "control"}, [])
    assert first["epochs"] == second["epochs"] != {}
    ranked = [given for given in request_lines(caplog) if given["endpoint"] == "/v1/rank"]
    assert [given["experiments"] for given in ranked] == [{"versions": "newer"}, {"versions": "control"}]
    assert [given.get("fell_back") for given in ranked] == [("versions",), None]
    assert COUNTRY["newer"] not in json.dumps([given["experiments"] for given in ranked])


def test_the_holdout_has_arms_of_its_own(models: Path) -> None:
    put(
        models,
        {**VALUES, "buckets": {"from": 0, "to": 9000}},
        holdout={
            "layer": "first",
            "buckets": {"from": 9000, "to": 10_000},
            "since": "2026-01-01",
        },
    )
    held = next(user for user in range(1000) if _bucket("one", user) >= 9000)
    with client_of(models) as client:
        assert rank(client, {"user_id": held})["experiments"] == {"holdout": "held"}
        assert rank(client, {"user_id": INSIDE["bold"]})["experiments"] == {"holdout": "rest", "values": "bold"}
        assert counted(client, REQUESTS, experiment="holdout", arm="held", code="200") == 1


def test_a_changed_file_is_taken_up_and_a_bad_one_is_not(client: TestClient, models: Path) -> None:
    def entry() -> dict[str, Any]:
        found: dict[str, Any] = client.get("/v1/models/tiny").json()
        return found

    (before,) = entry()["experiments"]
    assert before["name"] == "values"
    put(models, {**VALUES, "arms": {"control": {}, "bold": {"value_model": "bolt"}}})
    wait_until(lambda: entry()["experiments_error"])
    assert "values.arms.bold: no value model 'bolt'; did you mean 'bold'?" in entry()["experiments_error"]
    assert entry()["experiments"] == [before]
    assert rank(client, {"user_id": INSIDE["bold"]})["experiments"] == {"values": "bold"}
    put(models, {**VALUES, "arms": {"control": {}, "bold": {"value_model": "odd"}}})
    wait_until(lambda: entry()["experiments"] != [before])
    assert entry()["experiments_error"] is None
    assert rank(client, {"user_id": INSIDE["bold"]})["value_model"] == "odd"


def test_a_salt_that_changes_midway_begins_an_epoch_and_says_so_in_the_log(models: Path, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "user-hash.key").write_text("a secret of more than 16 bytes")
    user, salted = INSIDE["bold"], {**VALUES, "salt": "again"}
    arm = "bold" if _bucket("again", user) < 5000 else "control"
    settings = {"impression_log": tmp_path / "log", "user_hash_key": tmp_path / "user-hash.key"}
    with client_of(models, **settings) as client:

        def in_force() -> str:
            (found,) = client.get("/v1/models/tiny").json()["experiments"]
            return str(found["version"])

        first = in_force()
        assert rank(client, {"user_id": user})["experiments"] == {"values": "bold"}
        put(models, salted)
        wait_until(lambda: in_force() != first)
        assert rank(client, {"user_id": user})["experiments"] == {"values": arm}
        second = in_force()
        # Back to the first salt is back in the first epoch.
        put(models, VALUES)
        wait_until(lambda: in_force() == first)
        assert rank(client, {"user_id": user})["experiments"] == {"values": "bold"}
    lines = [(line["experiments"]["values"], line["epochs"]["values"]) for line in lines_of(tmp_path / "log")]
    assert lines == [("bold", first), (arm, second), ("bold", first)]


def test_a_value_model_that_goes_is_said_and_its_arm_falls_back(client: TestClient, models: Path) -> None:
    file = models / "tiny" / "value_models.yaml"
    text = file.read_text()
    file.write_text("default: {kind: weighted_sum, weights: {click: 1.0}}")
    wait_until(lambda: len(client.get("/v1/models/tiny").json()["value_models"]) == 1)
    assert "no value model 'bold'" in client.get("/v1/models/tiny").json()["experiments_error"]
    answer = rank(client, {"user_id": INSIDE["bold"]})
    assert (answer["experiments"], answer["value_model"]) == ({"values": "bold"}, "default")
    assert counted(client, "ranking_experiment_fell_back_total", experiment="values", arm="bold") == 1
    publish_artifact(models, user="user_id")
    (models / "tiny" / "labels.yaml").write_text("{stable: 3}")
    wait_until(lambda: client.get("/v1/models/tiny").json()["default_version"] == "3")
    assert rank(client, {"user_id": INSIDE["bold"]})["experiments"] == {"values": "bold"}
    file.write_text(text)
    wait_until(lambda: len(client.get("/v1/models/tiny").json()["value_models"]) == len(WEIGHTS))
    assert client.get("/v1/models/tiny").json()["experiments_error"] is None
    assert rank(client, {"user_id": INSIDE["bold"]})["value_model"] == "bold"


def test_what_the_golden_request_is_in_does_not_matter_to_its_scores(client: TestClient) -> None:
    user = {**TINY_REQUEST["user"], "user_id": INSIDE["bold"]}
    answers = [
        client.post("/v1/rank", json={**TINY_REQUEST, "user": user, **named}).json() for named in ({}, {"version": "1"})
    ]
    assert answers[0]["candidates"]["tasks"] == answers[1]["candidates"]["tasks"]
