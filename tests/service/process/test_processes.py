"""The service as it runs: real uvicorn processes, a real HTTP client, signals, files that change underneath."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model.artifact.artifact import RANKER
from model.scorer.scorer import Scorer
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.running import RunningService


def _answer(service: RunningService) -> dict[str, object]:
    response = service.client.post("/v1/rank", json=TINY_REQUEST)
    assert response.status_code == 200, response.text
    answer: dict[str, object] = response.json()
    return answer


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _samples(client: httpx.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_main_path_over_http(tmp_path: Path) -> None:
    version = publish_artifact(tmp_path)
    (tmp_path / "tiny" / "value_models.yaml").write_text(
        "default: {kind: weighted_sum, weights: {click: 1.0, like: -3.0, play_time: 0.01}}\n"
    )
    candidates = TINY_REQUEST["candidates"]
    answers_NO = Scorer.load(version).score_values(TINY_REQUEST["user"], candidates["features"], 4).astype(np.float64)
    score_N = answers_NO @ np.array([1.0, -3.0, 0.01])
    order = np.argsort(-score_N)
    with RunningService(tmp_path) as service:
        service.wait_ready()
        answer = service.client.post("/v1/rank", json={**TINY_REQUEST, "request_id": "r-1", "top_k": 3})
        assert answer.status_code == 200
        assert answer.headers["x-request-id"] == "r-1"
        ranked = answer.json()["candidates"]
        assert ranked["id"] == [candidates["id"][i] for i in order[:3]]
        # The same float32 answers, written with all their digits. 1e-6 allows for the order of additions alone.
        np.testing.assert_allclose(ranked["score"], score_N[order[:3]], atol=1e-6)
        for position, task in enumerate(("click", "like", "play_time")):
            np.testing.assert_allclose(ranked["tasks"][task], answers_NO[order[:3], position], atol=1e-6)
        assert service.stop(signal.SIGTERM) == 0
        (line,) = service.log_lines("feedrank.requests")
        assert line["request_id"] == "r-1"
        assert (line["model"], line["model_version"], line["candidates"], line["status"]) == ("tiny", "1", 4, 200)


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_ends_it_with_status_0_and_leaves_no_process(tmp_path: Path, workers: int) -> None:
    publish_artifact(tmp_path)
    with RunningService(tmp_path, "--workers", str(workers)) as service:
        service.wait_ready()
        children = psutil.Process(service.process.pid).children(recursive=True)
        assert service.stop(signal.SIGTERM) == 0
        # An ended process stays a zombie until process 1 reaps it, which is not the service's to do.
        _, alive = psutil.wait_procs([child for child in children if _is_alive(child)], timeout=5)
        assert [child for child in alive if _is_alive(child)] == []
        assert not any("Traceback" in line for line in service.log), service.log


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_in_a_terminal_signals_every_process_and_ends_it_well(tmp_path: Path, workers: int) -> None:
    publish_artifact(tmp_path)
    with RunningService(tmp_path, "--workers", str(workers)) as service:
        service.wait_ready()
        os.killpg(service.process.pid, signal.SIGINT)
        assert service.wait() == 0
        assert not any("Traceback" in line for line in service.log), service.log


def test_a_signal_while_it_starts_ends_it_as_well(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    service = RunningService(tmp_path)
    try:
        service.wait_for(lambda: any("Started server process" in line for line in list(service.log)))
        assert service.stop(signal.SIGTERM) == 0
    finally:
        service.end()
    assert not any("Traceback" in line for line in service.log), service.log


def test_a_request_that_has_begun_is_finished_after_sigterm(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    body = json.dumps(TINY_REQUEST).encode()
    with RunningService(tmp_path) as service:
        service.wait_ready()

        def body_with_a_signal_in_the_middle() -> Iterator[bytes]:
            yield body[:50]
            with httpx.Client(base_url=service.client.base_url, trust_env=False) as other:
                service.wait_for(lambda: _samples(other)["ranking_requests_in_flight", frozenset()] == 1)
            service.process.send_signal(signal.SIGTERM)
            service.wait_for(lambda: any("Shutting down" in line for line in list(service.log)))
            yield body[50:]

        response = service.client.post("/v1/rank", content=body_with_a_signal_in_the_middle())
        assert response.status_code == 200
        assert len(response.json()["candidates"]["id"]) == 4
        assert service.wait() == 0


def test_a_client_that_goes_away_is_no_error(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    with RunningService(tmp_path) as service:
        service.wait_ready()
        url = httpx.URL(service.client.base_url)
        with socket.create_connection((url.host, url.port or 0), timeout=10) as connection:
            connection.sendall(b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
            service.wait_for(lambda: _samples(service.client)["ranking_requests_in_flight", frozenset()] == 1)
        gone = "ranking_requests_total", frozenset({("endpoint", "/v1/rank"), ("code", "499")})
        service.wait_for(lambda: gone in _samples(service.client))
        assert _samples(service.client)["ranking_requests_in_flight", frozenset()] == 0
        # One that is cut off in its trailers is counted by the status that it sees.
        with socket.create_connection((url.host, url.port or 0), timeout=10) as connection:
            head = b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
            connection.sendall(head)
            service.wait_for(lambda: _samples(service.client)["ranking_requests_in_flight", frozenset()] == 1)
            connection.sendall(b"X: " + b"y" * 40_000)
            assert connection.recv(12) == b"HTTP/1.1 431"
        cut_off = "ranking_requests_total", frozenset({("endpoint", "/v1/rank"), ("code", "431")})
        service.wait_for(lambda: cut_off in _samples(service.client))
        assert _samples(service.client)[gone] == 1
        assert _answer(service)["model_version"] == "1"
        assert not any("Traceback" in line or "traceback" in line for line in service.log), service.log


def test_metrics_of_two_workers_add_up(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    requests = 40
    with RunningService(tmp_path, "--workers", "2", "--threads", "1") as service:
        service.wait_ready()
        for _ in range(requests):  # a connection each, so that the system spreads them over both workers
            response = httpx.post(f"{service.client.base_url}/v1/rank", json=TINY_REQUEST, timeout=30, trust_env=False)
            assert response.status_code == 200  # a worker takes no connection before it has loaded
        # A worker counts a request after its answer has left, and the other one may be scraped before that.
        answered = "ranking_requests_total", frozenset({("endpoint", "/v1/rank"), ("code", "200")})
        service.wait_for(lambda: _samples(service.client)[answered] == requests)
        service.wait_for(lambda: _samples(service.client)["ranking_requests_in_flight", frozenset()] == 0)
        # Histograms reach the file that workers share now and then.
        counted = "ranking_candidates_per_request_count", frozenset[tuple[str, str]]()
        service.wait_for(lambda: _samples(service.client)[counted] == requests)
        samples = _samples(service.client)
        served = frozenset({("model", "tiny"), ("version", "1"), ("engine", "torchscript"), ("calibration", "")})
        assert samples["ranking_model_info", served] == 1
        folder = Path(psutil.Process(service.process.pid).children()[0].environ()["PROMETHEUS_MULTIPROC_DIR"])
        writers = {int(file.stem.rpartition("_")[2]) for file in folder.glob("counter_*.db")}
        assert len(writers - {service.process.pid}) == 2  # their parent counts restarts
        assert service.stop(signal.SIGTERM) == 0
        assert not folder.exists()


def test_a_killed_worker_is_replaced_and_its_requests_stay_counted(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    key = "ranking_candidates_per_request_count", frozenset[tuple[str, str]]()
    with RunningService(tmp_path, "--workers", "2", "--threads", "1") as service:
        service.wait_ready()
        before = service.workers()
        _answer(service)
        assert _samples(service.client)[key] == 1
        service.client.close()
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        service.client = httpx.Client(base_url=service.client.base_url, timeout=30, trust_env=False)
        service.wait_for(lambda: len(service.workers() - {victim}) == len(before))
        service.wait_ready()
        assert _samples(service.client)[key] == 1


def test_a_newer_version_is_swapped_in_while_it_serves(tmp_path: Path) -> None:
    publish_artifact(tmp_path, seed=0)
    with RunningService(tmp_path) as service:
        service.wait_ready()
        assert _answer(service)["model_version"] == "1"
        second = publish_artifact(tmp_path, seed=1)
        service.wait_for(lambda: _answer(service)["model_version"] == "2")  # every answer on the way is a 200
        expected_NO = Scorer.load(second).score_values(TINY_REQUEST["user"], TINY_REQUEST["candidates"]["features"], 4)
        answer = service.client.post("/v1/rank", json=TINY_REQUEST).json()
        by_id = dict(zip(answer["candidates"]["id"], answer["candidates"]["tasks"]["click"], strict=True))
        np.testing.assert_allclose([by_id[i] for i in "abcd"], expected_NO[:, 0], atol=1e-6)
        (entry,) = service.client.get("/v1/models").json()["models"]
        assert [(version["version"], version["state"]) for version in entry["versions"]] == [
            ("2", "ready"),
            ("1", "retired"),
        ]


def test_a_flipped_byte_in_a_new_version_leaves_the_old_one_serving(tmp_path: Path) -> None:
    publish_artifact(tmp_path, seed=0)
    elsewhere = tmp_path / "elsewhere"
    publish_artifact(elsewhere, seed=0)
    bad = publish_artifact(elsewhere, seed=1)
    content = bytearray((bad / RANKER).read_bytes())
    content[len(content) // 2] ^= 1
    (bad / RANKER).write_bytes(content)
    models = tmp_path / "models"
    models.mkdir()
    (tmp_path / "tiny").rename(models / "tiny")
    with RunningService(models) as service:
        service.wait_ready()
        bad.rename(models / "tiny" / "2")
        service.wait_for(lambda: len(service.client.get("/v1/models").json()["models"][0]["versions"]) == 2)
        service.wait_for(
            lambda: service.client.get("/v1/models").json()["models"][0]["versions"][0]["state"] == "quarantined"
        )
        (entry,) = service.client.get("/v1/models").json()["models"]
        assert entry["default_version"] == "1"
        assert "ranker.pt" in entry["versions"][0]["reason"]
        assert "checksum" in entry["versions"][0]["reason"]
        assert _answer(service)["model_version"] == "1"
        assert _samples(service.client)["ranking_model_load_total", frozenset({("result", "quarantined")})] == 1


def test_an_empty_folder_starts_and_says_why_it_is_not_ready(tmp_path: Path) -> None:
    with RunningService(tmp_path) as service:
        assert service.client.get("/healthz").status_code == 200
        service.wait_for(lambda: "no published version" in service.client.get("/readyz").text)
        refused = service.client.post("/v1/rank", json=TINY_REQUEST)
        assert refused.status_code == 503
        assert refused.headers["content-type"] == "application/problem+json"
        publish_artifact(tmp_path)
        service.wait_ready()  # it kept looking
        assert _answer(service)["model_version"] == "1"


def test_a_body_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    publish_artifact(tmp_path)
    with RunningService(tmp_path) as service:
        service.wait_ready()
        announced = service.client.post("/v1/rank", content=b" " * 10_000_000)
        streamed = service.client.post("/v1/rank", content=(b" " * 65_536 for _ in range(160)))
        for response in (announced, streamed):
            assert response.status_code == 413
            assert "4194304 bytes" in response.json()["detail"]
        assert _answer(service)["model_version"] == "1"  # on the same connection


def test_a_port_in_use_is_an_error_not_a_traceback(tmp_path: Path) -> None:
    with RunningService(tmp_path) as service:
        port = str(httpx.URL(service.client.base_url).port)
        for workers in ("1", "2"):
            second = RunningService(tmp_path, "--port", port, "--workers", workers)
            assert second.process.wait(timeout=60) != 0
            second.end()
            assert any("address already in use" in line.lower() for line in second.log)
            assert not any("Traceback" in line for line in second.log)
