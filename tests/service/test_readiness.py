"""Deadlines, draining, stalled threads, scores that are not finite: when the service says that it cannot."""

import asyncio
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from model.scorer.scorer import Scored, Scorer
from service import app
from service.app import Service
from service.metrics.metrics import Metrics
from service.models.store import ModelStore
from service.process import scoring_threads
from service.process.scoring_threads import ScoringThreads
from service.rank import question
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.in_process import client_of, sample


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> list[Service]:
    """Collect the services that applications are made of, to reach behind their routes."""
    made: list[Service] = []

    class Collected(Service):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(app, "Service", Collected)
    return made


@pytest.fixture
def client(tmp_path: Path, services: list[Service]) -> Iterator[TestClient]:
    assert services == []
    publish_artifact(tmp_path)
    with client_of(tmp_path) as client:
        yield client


class Gate:
    """Stands in for Scorer.score: waits until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_entered = threading.Event()
        self.opened = threading.Event()
        score = Scorer.score

        def waiting(scorer: Scorer, *arguments: Any) -> Scored:
            self.is_entered.set()
            assert self.opened.wait(timeout=60)
            return score(scorer, *arguments)

        monkeypatch.setattr(Scorer, "score", waiting)


def test_a_deadline_passes_while_others_are_scored(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    statuses: list[int] = []
    busy = threading.Thread(target=lambda: statuses.append(client.post("/v1/rank", json=TINY_REQUEST).status_code))
    busy.start()
    assert gate.is_entered.wait(timeout=60)
    late = client.post("/v1/rank", json=TINY_REQUEST, headers={"X-Request-Timeout-Ms": "30"})
    assert late.status_code == 504
    assert late.json()["type"].endswith("deadline-passed")
    gate.opened.set()
    busy.join()
    assert statuses == [200]
    assert sample(client, "ranking_requests_rejected_total", reason="deadline") == 1
    assert sample(client, "ranking_inference_duration_seconds_count") == 1  # the late one never reached the model


def test_a_deadline_that_has_passed_before_the_model_spares_the_model(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_columns(*arguments: Any) -> Any:
        deadline = time.perf_counter() + 0.02
        while time.perf_counter() < deadline:
            pass
        return read_features(*arguments)

    read_features = question.read_features
    monkeypatch.setattr("service.pipeline.read_features", slow_columns)
    response = client.post("/v1/rank", json=TINY_REQUEST, headers={"X-Request-Timeout-Ms": "10"})
    assert response.status_code == 504
    assert sample(client, "ranking_inference_duration_seconds_count") == 0


def test_a_deadline_in_time_is_no_hindrance(client: TestClient) -> None:
    response = client.post("/v1/rank", json=TINY_REQUEST, headers={"X-Request-Timeout-Ms": "60000"})
    assert response.status_code == 200


def test_draining_turns_readiness_off_and_finishes_what_runs(
    client: TestClient, services: list[Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    statuses: list[int] = []
    running = threading.Thread(target=lambda: statuses.append(client.post("/v1/rank", json=TINY_REQUEST).status_code))
    running.start()
    assert gate.is_entered.wait(timeout=60)
    services[0].is_draining = True
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200
    refused = client.post("/v1/rank", json=TINY_REQUEST)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert "shutting down" in refused.json()["detail"]
    gate.opened.set()
    running.join()
    assert statuses == [200]
    assert sample(client, "ranking_requests_rejected_total", reason="draining") == 1


def test_threads_without_progress_turn_readiness_off(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring_threads, "STALLED_SECONDS", 0.05)
    gate = Gate(monkeypatch)
    assert client.get("/readyz").status_code == 200  # idle for longer than that is no stall
    running = threading.Thread(target=lambda: client.post("/v1/rank", json=TINY_REQUEST))
    running.start()
    assert gate.is_entered.wait(timeout=60)
    give_up = time.monotonic() + 30
    while client.get("/readyz").status_code == 200:
        assert time.monotonic() < give_up
    assert "progress" in client.get("/readyz").json()["detail"]
    gate.opened.set()
    running.join()
    assert client.get("/readyz").status_code == 200


def test_scores_that_are_not_finite_are_500_and_no_score(
    client: TestClient, services: list[Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = services[0].store.find(None, None)
    monkeypatch.setattr(model.scorer, "module", lambda *_: torch.full((4, 3), float("nan")))
    response = client.post("/v1/rank", json=TINY_REQUEST)
    assert response.status_code == 500
    assert "not finite" in response.json()["detail"]
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert sample(client, "ranking_requests_total", endpoint="/v1/rank", code="500") == 1
    assert sample(client, "ranking_requests_rejected_total", reason="not_finite") == 1


@pytest.mark.parametrize("definition", [
    "{kind: weighted_sum, weights: {play_time: 1e308}}",
    "{kind: weighted_sum, weights: {play_time: 1e+36}}",      # a float64 holds it, the float32 of /v2 does not
    "{kind: weighted_product, exponents: {click: -100000}}",
    "{kind: expression, formula: (abs(click - 0.5) - 0.25) ** 0.5}",
])  # fmt: skip
def test_a_value_model_that_may_not_be_finite_is_refused_before_it_answers(
    client: TestClient, tmp_path: Path, services: list[Service], definition: str
) -> None:
    before = client.post("/v1/rank", json=TINY_REQUEST).json()
    (tmp_path / "tiny" / "value_models.yaml").write_text(f"default: {definition}")
    services[0].store.stop()
    services[0].store.refresh()
    assert "gives" in client.get("/v1/models/tiny").json()["value_models_error"]
    after = client.post("/v1/rank", json=TINY_REQUEST).json()
    assert after["candidates"] == before["candidates"]
    assert after["value_model_version"] == before["value_model_version"]


@pytest.mark.parametrize("is_broken", [True, False], ids=["for good", "once"])
def test_golden_requests_run_again_after_a_score_that_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_broken: bool
) -> None:
    publish_artifact(tmp_path)
    store = ModelStore(tmp_path, Metrics(), poll_seconds=3600, torch_threads=1)
    store.refresh()
    model = store.find(None, None)
    store.refresh()
    assert store.entry("tiny")["versions"][0]["reason"] is None
    if is_broken:
        monkeypatch.setattr(model.scorer, "module", lambda *_: torch.full((4, 3), float("nan")))
    for _ in range(2):
        store.recheck(model)
        store.refresh()
    (version,) = store.entry("tiny")["versions"]
    failed = store._metrics.registry.get_sample_value("ranking_model_load_total", {"result": "golden_failed"})
    assert version["state"] == "ready"
    assert failed == (2 if is_broken else 0)
    assert (version["reason"] is not None and "golden_requests.json" in version["reason"]) == is_broken
    publish_artifact(tmp_path, seed=1)
    store.recheck(model)
    store.refresh()
    assert [entry["reason"] for entry in store.entry("tiny")["versions"]] == [None, None]


def test_a_job_that_nobody_waits_for_never_begins() -> None:
    threads = ScoringThreads(1, 1)
    is_open, begun = threading.Event(), []

    async def main() -> None:
        settled: asyncio.Future[tuple[object, BaseException | None]] = asyncio.get_running_loop().create_future()
        threads.submit(lambda: is_open.wait(60), lambda *outcome: settled.set_result(outcome))
        threads.submit(lambda: begun.append(1), lambda *_: begun.append(2)).cancel()
        is_open.set()
        assert await settled == (True, None)
        threads.close()

    asyncio.run(main())
    assert begun == []
    assert not threads.is_stalled


def test_jobs_end_each_for_itself_and_all_of_them() -> None:
    threads = ScoringThreads(2, 1)
    outcomes: list[tuple[object, str | None]] = []
    reported: list[dict[str, object]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        for number in range(100):
            threads.submit(partial(_third_fails, number), settle)
        threads.close()  # waits for them, and settles all

    def settle(result: object, error: BaseException | None) -> None:
        outcomes.append((result, None if error is None else str(error)))
        if result == 1:
            raise RuntimeError("in settling")

    asyncio.run(main())
    expected = [(None, str(number)) if number % 3 == 0 else (number, None) for number in range(100)]
    assert sorted(outcomes, key=str) == sorted(expected, key=str)
    assert [str(context["exception"]) for context in reported] == ["in settling"]
    with pytest.raises(RuntimeError, match="ended"):
        threads.submit(int, settle)


def _third_fails(number: int) -> int:
    if number % 3 == 0:
        raise ValueError(number)
    return number
