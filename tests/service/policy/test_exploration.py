"""Explored requests of a service: their draws, the counts of them, and their log replayed."""

import json
from pathlib import Path
from typing import Any

from scipy import stats
from starlette.testclient import TestClient

from service.replay import replay
from tests.artifacts import TINY_REQUEST
from tests.service.impressions.impressions_read import lines_of
from tests.service.in_process import client_of, sample

POLICIES = """
half: {select: {explore: {temperature: 2, head: 2, share: 0.5}, cap: {per: tag, count: 1, within: 2}}}
all: {select: {explore: {temperature: 2, head: 3, share: 1}, mmr: {lambda: 0.6, head: 4, by: video_id}}}
"""
REQUESTS = 100


def ask(client: TestClient, **more: Any) -> dict[str, Any]:
    response = client.post("/v1/rank", json={**TINY_REQUEST, **more})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_request_that_is_sent_again_is_drawn_alike_and_counted(client: TestClient) -> None:
    def counted(name: str) -> float:
        return sample(client, f"ranking_policy_{name}_total", model="tiny", policy="all")

    before = counted("explored"), counted("repeated_ids")
    again = [ask(client, request_id="r-1", policy="all")["candidates"]["id"] for _ in range(1_000)]
    assert all(order == again[0] for order in again)
    # Those without an id have one of the service's own, each another.
    for _ in range(50):
        body = {name: value for name, value in TINY_REQUEST.items() if name != "request_id"}
        assert client.post("/v1/rank", json={**body, "policy": "all"}).status_code == 200
    assert (counted("explored"), counted("repeated_ids")) == (before[0] + 1_050, before[1] + 999)


def test_the_share_of_requests_explores_and_its_replay_draws_the_same(models: Path, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with client_of(models, impression_log=tmp_path / "log") as client:
        for number in range(REQUESTS):
            ask(client, request_id=f"r-{number}", policy="half")
            ask(client, request_id=f"r-{number}", policy="all")
        found = sample(client, "ranking_policy_explored_total", model="tiny", policy="half")
    lines = lines_of(tmp_path / "log")
    explored = sum(line["propensity"] is not None for line in lines if line["policy"] == "half")
    assert explored == found
    # 1 in 1,000 of other ids would fail, and these are fixed.
    assert stats.binomtest(explored, REQUESTS, 0.5).pvalue > 0.001
    for policy, requests in (("half", explored), ("all", REQUESTS)):
        log = tmp_path / policy
        log.mkdir()
        of_policy = [json.dumps(line) + "\n" for line in lines if line["policy"] == policy]
        (log / "impressions-1.jsonl").write_text("".join(of_policy))
        document = tmp_path / f"{policy}.json"
        arguments = [str(log), "--models", str(models), "--policy", policy, "--json", str(document)]
        assert replay.main(arguments) == 0
        replayed = json.loads(document.read_text())
        assert replayed["ranking"]["kendall_tau"]["mean"] == 1.0
        assert replayed["policy"]["explored"] == requests
