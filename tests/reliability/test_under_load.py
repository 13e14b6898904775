"""Reloads, more traffic than there is capacity, workers that are killed: no answer is lost or wrong, counters hold."""

import json
import math
import os
import signal
import time
from pathlib import Path

import httpx

from service.http.middleware import MOMENT_SECONDS
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.reliability.load import BROKEN, Load, Truth, ask, metric
from tests.reliability.sizes import SIZES
from tests.service.running import RunningService

# A queue without a bound: how busy this machine is besides must not decide what is shed.
TWO_WORKERS = ("--workers", "2", "--threads", "1", "--queue-seconds", "60")


def test_a_swap_fails_no_request_and_every_answer_is_of_one_version(tmp_path: Path) -> None:
    truth = Truth(publish_artifact(tmp_path))
    with RunningService(tmp_path, *TWO_WORKERS) as service:
        service.wait_workers(2)
        with Load(service.client.base_url, clients=3) as load:
            for seed in range(1, SIZES.swaps + 1):
                load.wait_for_more(10)
                version = publish_artifact(tmp_path, seed=seed)
                truth.know(version)
                load.wait_for(lambda answer, name=version.name: truth.check(answer) == name)  # type: ignore[misc]
        assert {answer.status for answer in load.answers} == {200}
        seen = {truth.check(answer) for answer in load.answers}
        assert seen == {str(version) for version in range(1, SIZES.swaps + 2)}
        answered = {"endpoint": "/v1/rank", "code": "200"}
        service.wait_for(lambda: metric(service.client, "ranking_requests_total", **answered) == len(load.answers))
        assert service.stop(signal.SIGTERM) == 0


def test_beyond_capacity_requests_are_answered_or_shed_and_nothing_else(tmp_path: Path) -> None:
    truth = Truth(publish_artifact(tmp_path))
    large = {**TINY_REQUEST, "candidates": {"id": [str(n) for n in range(1000)], "features": {}}}
    with RunningService(tmp_path, "--threads", "1", "--queue-seconds", "0.005") as service:
        service.wait_ready()
        until = time.monotonic() + SIZES.overload_seconds
        with Load(service.client.base_url, clients=16, body=json.dumps(large).encode()) as load:
            load.wait_for(lambda answer: answer.status == 429)
            while time.monotonic() < until:
                load.wait_for_more(16)
        answered, shed = load.of(200), load.of(429)
        assert len(answered) + len(shed) == len(load.answers)
        assert answered
        for answer in answered:
            assert len(json.loads(answer.body)["candidates"]["id"]) == 1000
        for answer in shed:
            assert int({name.lower(): value for name, value in answer.headers.items()}["retry-after"]) >= 1
        # It is itself again as soon as they are gone, and has counted them all.
        client = service.client
        service.wait_for(lambda: metric(client, "ranking_requests_in_flight") == 0)
        assert metric(client, "ranking_work_in_flight") == 0
        assert metric(client, "ranking_requests_rejected_total", reason="shed") == len(shed)
        assert metric(client, "ranking_requests_total", endpoint="/v1/rank", code="200") == len(answered)
        assert truth.check(ask((client.base_url.host, client.base_url.port))) == "1"


def test_a_killed_worker_loses_what_it_held_alone_and_its_counters_stay(tmp_path: Path) -> None:
    truth, clients = Truth(publish_artifact(tmp_path)), 3
    with RunningService(tmp_path, *TWO_WORKERS) as service:
        service.wait_workers(2)
        killed: list[int] = []

        def counted() -> float:
            # A connection of its own: one that is kept may be the killed worker's.
            with httpx.Client(base_url=service.client.base_url, timeout=30, trust_env=False) as client:
                return metric(client, "ranking_requests_total", endpoint="/v1/rank", code="200")

        started = time.monotonic()
        with Load(service.client.base_url, clients) as load:
            for _ in range(SIZES.kills):
                load.wait_for_more(20)
                before, victim = counted(), min(service.workers())
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)
                load.wait_for(lambda answer: answer.status == 200)
                assert counted() >= before
                service.wait_workers(2, besides=killed)
            load.wait_for_more(20)
            seconds = time.monotonic() - started
        assert {answer.status for answer in load.answers} <= {200, BROKEN}
        # A worker has at most one request of every client.
        may_be_lost = clients * SIZES.kills
        assert len(load.of(BROKEN)) <= may_be_lost
        # It counts answers within a moment of their leaving. Of one moment there may be several times the usual number.
        may_be_lost += math.ceil(8 * SIZES.kills * MOMENT_SECONDS * len(load.of(200)) / seconds)
        assert {truth.check(answer) for answer in load.of(200)} == {"1"}
        assert abs(counted() - len(load.of(200))) <= may_be_lost
        service.client.close()
        service.client = httpx.Client(base_url=service.client.base_url, timeout=30, trust_env=False)
        service.wait_for(lambda: metric(service.client, "ranking_requests_in_flight") == 0)
        assert metric(service.client, "ranking_work_in_flight") == 0
        assert service.stop(signal.SIGTERM) == 0
