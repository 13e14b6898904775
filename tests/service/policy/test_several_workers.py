"""Two workers and another service: a user has one arm in all of them, and ids repeat across workers."""

from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest
import xxhash
import yaml

from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.service.running import RunningService

USERS = range(40)
REPEATS = 30
EXPERIMENTS = {
    "layers": {"first": {"salt": "one", "unit": "user_id"}},
    "experiments": [
        {
            "name": "values",
            "layer": "first",
            "buckets": {"from": 0, "to": 7000},
            "start": "2026-01-01",
            "horizon": "24h",
            "realised": {"click": 1.0},
            "arms": {"bold": {"weight": 1}, "control": {"weight": 1}},
        }
    ],
}
POLICIES = "drawn: {select: {explore: {temperature: 2, head: 3, share: 1}}}\n"
REPEATED = 'ranking_policy_repeated_ids_total{model="tiny",policy="drawn"}'


def bucket(salt: str, user: int) -> int:
    return int(xxhash.xxh3_64_intdigest(f"{salt}\0{user}".encode()) % 10_000)


def by_the_recipe(user: int) -> dict[str, str]:
    if bucket("one", user) >= 7000:
        return {}
    return {"values": "bold" if bucket("values", user) < 5000 else "control"}


def ask(client: httpx.Client, user: int, **more: str) -> dict[str, str]:
    """The arms of a user."""
    body = {**TINY_REQUEST, "user": {**TINY_REQUEST["user"], "user_id": user}, **more}
    response = client.post("/v1/rank", json=body)
    assert response.status_code == 200, response.text
    arms: dict[str, str] = response.json().get("experiments", {})
    return arms


def client_of_each_worker(service: RunningService, stack: ExitStack) -> list[httpx.Client]:
    """A client for each worker, by the process that has its connection. The system chooses who takes one."""
    found: dict[int, httpx.Client] = {}

    def are_all_found() -> bool:
        client = stack.enter_context(httpx.Client(base_url=service.client.base_url, timeout=30, trust_env=False))
        stream = client.get("/healthz").extensions["network_stream"]
        port = stream.get_extra_info("client_addr")[1]
        for worker in service.workers():
            if any(one.raddr and one.raddr.port == port for one in psutil.Process(worker).net_connections("tcp")):
                found[worker] = client
        return len(found) == 2

    service.wait_for(are_all_found)
    return list(found.values())


@pytest.fixture
def models(tmp_path: Path) -> Path:
    publish_artifact(tmp_path, user="user_id")
    (tmp_path / "tiny" / "experiments.yaml").write_text(yaml.safe_dump(EXPERIMENTS))
    (tmp_path / "tiny" / "policies.yaml").write_text(POLICIES)
    return tmp_path


def test_a_user_has_one_arm_everywhere_and_ids_repeat_across_workers(models: Path) -> None:
    expected = {user: by_the_recipe(user) for user in USERS}
    assert {arm for arms in expected.values() for arm in arms.values()} == {"bold", "control"}
    assert {} in expected.values()
    with (
        ExitStack() as stack,
        RunningService(models, "--workers", "2", "--threads", "1") as service,
        RunningService(models, "--threads", "1") as another,
    ):
        service.wait_ready()
        service.wait_workers(2)
        another.wait_ready()
        clients = client_of_each_worker(service, stack)
        for client in (*clients, another.client):
            assert {user: ask(client, user) for user in USERS} == expected
        for number in range(REPEATS):
            ask(clients[number % 2], 1, request_id="one-id", policy="drawn")

        def repeated() -> float:
            lines = service.client.get("/metrics").text.splitlines()
            return float(next(line for line in lines if line.startswith(REPEATED)).rpartition(" ")[2])

        service.wait_for(lambda: repeated() >= REPEATS - 1)
        assert repeated() == REPEATS - 1
