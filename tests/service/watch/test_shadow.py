"""Shadow scoring: its metrics against numpy, what it leaves out, and that no answer depends on it."""

import threading
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from model.buckets import bucket_of
from model.schema import FeedSchema
from model.scorer.scorer import NonFiniteScoresError, Scorer
from service.metrics.shadow_metrics import RESULTS
from service.models.labels import SHADOW_SEED, falls_within
from service.watch.shadow import MOST_WAITING
from tests.artifacts import TINY_REQUEST, TINY_SCHEMA, publish_artifact
from tests.items import tiny_items, values_of, write_items
from tests.service.in_process import client_of, sample, samples
from tests.service.open_inference.tensors import INFER, tensors_of
from training.publish.catalogue import build_catalogue

WAIT_SECONDS = 60.0
LABELS = "{stable: 1, shadow: 2}"
TASKS = ("click", "like", "play_time")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    for seed in range(3):
        publish_artifact(models, seed=seed)
    (models / "tiny" / "labels.yaml").write_text(LABELS)
    return models


@pytest.fixture
def client(models: Path) -> Iterator[TestClient]:
    with client_of(models) as client:
        yield client


def results(client: TestClient, version: str = "2") -> dict[str, float]:
    return {
        result: sample(client, "ranking_shadow_requests_total", model="tiny", version=version, result=result)
        for result in RESULTS
    }


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def requests_of(count: int, rows: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(5)
    return [
        {
            "request_id": f"r{number}",
            "user": {"user_id": int(random.integers(50)), "country": "de", "age_days": 3.0},
            "candidates": {
                "id": [f"c{row}" for row in range(rows)],
                "features": {
                    "video_id": random.integers(0, 100, rows).tolist(),
                    "tag": random.choice(["x", "y", "z"], rows).tolist(),
                    "topics": [[7, 8][: random.integers(3)] for _ in range(rows)],
                    "duration_ms": random.uniform(0, 60_000, rows).tolist(),
                },
            },
        }
        for number in range(count)
    ]


def answers_of(scorer: Scorer, request: dict[str, Any]) -> NDArray[np.float32]:
    return scorer.score_values(request["user"], request["candidates"]["features"], len(request["candidates"]["id"]))


def ranks(answers_NO: NDArray[np.float32]) -> list[int]:
    """The built-in value model: the sum of both binary tasks. Best first, ties in request order."""
    score = answers_NO[:, :2].astype(np.float64).sum(axis=1)
    return sorted(range(len(score)), key=lambda row: (-score[row], row))


def kendall_tau(before: list[int], after: list[int]) -> float:
    place = {row: position for position, row in enumerate(after)}
    signs = [1 if place[one] < place[other] else -1 for one, other in combinations(before, 2)]
    return float(np.mean(signs))


def at_most(values: list[float], bounds: list[float]) -> list[int]:
    return [sum(value <= bound for value in values) for bound in bounds]


def buckets(client: TestClient, name: str) -> tuple[list[float], list[float]]:
    found = sorted((float(dict(labels)["le"]), count) for labels, count in samples(client, f"{name}_bucket").items())
    return [bound for bound, _ in found], [count for _, count in found]


def test_the_metrics_are_those_of_numpy(client: TestClient, models: Path) -> None:
    assert set(results(client).values()) == {0}  # exported from 0, before the first request
    requests = requests_of(12, 15)
    for request in requests:
        assert client.post("/v1/rank", json=request).json()["model_version"] == "1"
    until(lambda: sum(results(client).values()) == len(requests))
    assert results(client)["scored"] == len(requests)

    scorers = [Scorer.load(models / "tiny" / version) for version in ("1", "2")]
    both = [[answers_of(scorer, request) for request in requests] for scorer in scorers]
    rankings = [(ranks(stable), ranks(shadow)) for stable, shadow in zip(*both, strict=True)]
    taus = [kendall_tau(*ranking) for ranking in rankings]
    overlaps = [len(set(one[:10]) & set(other[:10])) / 10 for one, other in rankings]
    for name, expected in (("ranking_shadow_rank_correlation", taus), ("ranking_shadow_top10_overlap", overlaps)):
        bounds, counts = buckets(client, name)
        assert counts == at_most(expected, bounds)
        assert counts[-1] == len(requests)
        assert counts[0] < counts[-1]
    assert sample(client, "ranking_shadow_candidates_total", model="tiny", version="2") == 12 * 15
    for answered_by, answers in zip(("stable", "shadow"), both, strict=True):
        for task, name in enumerate(TASKS):
            labels = {"model": "tiny", "version": "2", "task": name, "answered_by": answered_by}
            total = sample(client, "ranking_shadow_task_answers_total", **labels)
            # What one request and golden request are summed by may differ in the last digits of float32.
            assert total == pytest.approx(sum(float(answers_NO[:, task].sum()) for answers_NO in answers), rel=1e-5)


def test_a_shadow_equal_to_stable_agrees_with_it(tmp_path: Path) -> None:
    for _ in range(2):
        publish_artifact(tmp_path, seed=4)
    (tmp_path / "tiny" / "labels.yaml").write_text(LABELS)
    with client_of(tmp_path) as client:
        client.post("/v1/rank", json=requests_of(1, 30)[0])
        until(lambda: results(client)["scored"] == 1)
        for name in ("ranking_shadow_rank_correlation", "ranking_shadow_top10_overlap"):
            assert buckets(client, name)[1][-3:] == [0, 1, 1]  # all below 1, 1, infinity


def test_both_shapes_and_the_open_inference_protocol_are_scored(client: TestClient) -> None:
    rows = [{"id": "a", "features": {"video_id": 3}}, {"id": "b", "features": {"tag": "x"}}]
    columnar = requests_of(1, 4)[0]
    inputs = [tensor.as_json() for tensor in tensors_of(columnar)]
    for path, body in (
        ("/v1/rank", columnar),
        ("/v1/rank", {"user": {}, "candidates": rows}),
        ("/v1/rank", {**columnar, "version": "1"}),
        ("/v1/rank", {**columnar, "version": "stable", "explain": True}),
        (INFER, {"id": "i", "inputs": inputs}),
    ):
        assert client.post(path, json=body).status_code == 200
    until(lambda: results(client)["scored"] == 5)
    # What another version has answered is not compared, nor what was refused.
    client.post("/v1/rank", json={**columnar, "version": "2"})
    assert client.post("/v1/rank", json={**columnar, "user": {"x": 1}}).status_code == 422
    client.post("/v1/rank", json=columnar)
    until(lambda: results(client)["scored"] == 6)
    assert sum(results(client).values()) == 6


def test_the_sample_goes_by_the_request_id(models: Path) -> None:
    requests = requests_of(60, 3)
    expected = sum(falls_within(request["request_id"], 0.4, SHADOW_SEED) for request in requests)
    assert 0 < expected < len(requests)
    with client_of(models, shadow_sample=0.4) as client:
        for request in requests:
            client.post("/v1/rank", json=request)
        until(lambda: sum(results(client).values()) >= expected)
        assert sum(results(client).values()) == expected


def test_requests_of_the_canary_are_not_compared_with_the_shadow(models: Path, tmp_path: Path) -> None:
    (models / "tiny" / "labels.yaml").write_text("{stable: 1, canary: {version: 3, share: 0.5}, shadow: 2}")
    requests = requests_of(40, 2)
    stable = sum(bucket_of("tiny/3", request["request_id"]) >= 5000 for request in requests)
    try:
        with client_of(models) as client:
            for request in requests:
                client.post("/v1/rank", json=request)
            until(lambda: sum(results(client).values()) >= stable)
            assert sum(results(client).values()) == stable
    finally:
        (models / "tiny" / "labels.yaml").write_text(LABELS)


def test_a_shadow_that_fails_or_hangs_harms_no_answer(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    score = Scorer.score
    is_open = threading.Event()
    request = requests_of(1, 5)[0]

    def fails(scorer: Scorer, *given: Any) -> Any:
        if scorer.version == "2":
            raise NonFiniteScoresError("NaN")
        return score(scorer, *given)

    def hangs(scorer: Scorer, *given: Any) -> Any:
        if scorer.version == "2":
            assert is_open.wait(WAIT_SECONDS)
        return score(scorer, *given)

    monkeypatch.setattr(Scorer, "score", fails)
    assert client.post("/v1/rank", json=request).status_code == 200
    until(lambda: results(client)["failed"] == 1)
    monkeypatch.setattr(Scorer, "score", hangs)
    asked = MOST_WAITING + 8
    try:
        for _ in range(asked):
            assert client.post("/v1/rank", json=request).status_code == 200
        # One is in hand at the most, MOST_WAITING wait.
        until(lambda: results(client)["dropped"] >= asked - MOST_WAITING - 1)
    finally:
        is_open.set()
    until(lambda: sum(results(client).values()) == asked + 1)
    assert results(client)["scored"] >= MOST_WAITING


def test_a_shadow_of_another_schema_takes_the_features_that_fit(tmp_path: Path) -> None:
    features = {feature["name"]: feature for feature in TINY_SCHEMA["features"]}
    del features["age_days"], features["tag"]
    features["topics"] = {**features["topics"], "dtype": "string", "vocabulary": ["7"]}
    features["price"] = {"name": "price", "side": "candidate", "kind": "number", "missing": 2.0}
    tasks = [*TINY_SCHEMA["tasks"][:2], {"name": "hide", "kind": "binary", "label": "is_hide"}]
    schema = FeedSchema.from_mapping(
        {"name": "tiny", "features": list(features.values()), "tasks": tasks}, "tests/service/watch/test_shadow.py"
    )
    kept = {"user": {"user_id": 1}, "candidates": {"id": ["a"], "features": {"video_id": [3], "duration_ms": [5]}}}
    publish_artifact(tmp_path)
    second = publish_artifact(tmp_path, seed=1, schema=schema, request=kept)
    (tmp_path / "tiny" / "labels.yaml").write_text(LABELS)
    request = requests_of(1, 8)[0]
    fitting = {name: request["candidates"]["features"][name] for name in ("video_id", "duration_ms")}
    user = {name: request["user"][name] for name in ("user_id", "country")}
    expected_NO = Scorer.load(second).score_values(user, fitting, 8)
    with client_of(tmp_path) as client:
        client.post("/v1/rank", json=request)
        until(lambda: sum(results(client).values()) == 1)
        assert results(client)["scored"] == 1
        for task, column in (("click", 0), ("like", 1)):
            labels = {"model": "tiny", "version": "2", "task": task, "answered_by": "shadow"}
            total = sample(client, "ranking_shadow_task_answers_total", **labels)
            assert total == pytest.approx(float(expected_NO[:, column].sum()), rel=1e-5)


def test_candidates_of_a_catalogue_are_found_in_the_shadows_own(tmp_path: Path) -> None:
    items = tiny_items(20)
    path = write_items(tmp_path / "items.parquet", items)
    models = tmp_path / "models"
    build_catalogue(publish_artifact(models), path)
    second = publish_artifact(models, seed=1)
    (models / "tiny" / "labels.yaml").write_text(LABELS)
    request = {"user": TINY_REQUEST["user"], "candidates": {"id": [f"item-{number}" for number in range(6)]}}
    with client_of(models) as client:
        assert client.post("/v1/rank", json=request).status_code == 200
        until(lambda: results(client)["skipped"] == 1)
        assert client.post("/v1/rank", json=requests_of(1, 6)[0]).status_code == 200
        until(lambda: results(client)["scored"] == 1)
        labels = {"model": "tiny", "version": "2", "task": "click", "answered_by": "shadow"}
        before = sample(client, "ranking_shadow_task_answers_total", **labels)
        build_catalogue(second, path)
        expected_NO = Scorer.load(second).score_values(request["user"], values_of(items, [*range(6)]), 6)

        asked = 2

        def is_found() -> bool:  # at the service's next look at the folder
            nonlocal asked
            asked += 1
            assert client.post("/v1/rank", json=request).status_code == 200
            return results(client)["scored"] > 1

        until(is_found)
        until(lambda: sum(results(client).values()) == asked)
        scored = results(client)["scored"] - 1
        total = sample(client, "ranking_shadow_task_answers_total", **labels) - before
        # The catalogue's sums may be kept in bfloat16.
        assert total == pytest.approx(scored * float(expected_NO[:, 0].sum()), rel=1e-2)
