"""Two hosts, each a network namespace of its own, with one Redis: users and arms of experiments are those of both."""

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import xxhash
import yaml

from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.deploy.programs import program, wait_for
from tests.service.running import RunningService
from tests.service.state.redis_servers import RedisServer
from tests.service.state.stores import STATE

KEY = "key of a backend"
CANDIDATES = TINY_REQUEST["candidates"]
UNITS = range(50)
_NETWORK = 0x40000000  # CLONE_NEWNET of <sched.h>
T = TypeVar("T")


class Host:
    """A network namespace, and a thread that is in it. What this thread starts is in it too."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, initializer=_enter, initargs=(name,))

    def run(self, call: Callable[[], T]) -> T:
        """The result of a function that is called on this host."""
        return self._executor.submit(call).result()

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown()


def _enter(name: str) -> None:
    descriptor = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, _NETWORK):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(descriptor)


@contextmanager
def _namespace(ip: str, name: str) -> Iterator[Host]:
    made = subprocess.run([ip, "netns", "add", name], check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
    try:
        subprocess.run([ip, "-n", name, "link", "set", "lo", "up"], check=True)
        host = Host(name)
        yield host
        host.close()
    finally:
        subprocess.run([ip, "netns", "del", name], check=True)


@pytest.fixture
def hosts() -> Iterator[tuple[Host, list[Host]]]:
    """A host for Redis, and two that reach it at 10.77.1.1 and 10.77.2.1, and not each other."""
    ip = program("ip", "iproute2")
    names = [f"feedrank-{os.getpid()}-{number}" for number in range(3)]
    with ExitStack() as stack:
        middle, *others = [stack.enter_context(_namespace(ip, name)) for name in names]
        for number in (1, 2):
            ends = ((names[0], f"to{number}", 1), (names[number], "redis", 2))
            (_, link, _), (other, peer, _) = ends
            commands = [f"-n {names[0]} link add {link} type veth peer name {peer} netns {other}"]
            for name, end, address in ends:
                commands.append(f"-n {name} addr add 10.77.{number}.{address}/24 dev {end}")
                commands.append(f"-n {name} link set {end} up")
            for command in commands:
                subprocess.run([ip, *command.split()], check=True)
        yield middle, others


@pytest.fixture
def models(tmp_path: Path) -> Path:
    publish_artifact(tmp_path / "models", user="user_id")
    beside = tmp_path / "models" / "tiny"
    (beside / "state.yaml").write_text(STATE)
    experiment = {
        "name": "bold",
        "layer": "ranking",
        "buckets": {"from": 0, "to": 10_000},
        "start": "2026-01-01",
        "horizon": "24h",
        "realised": {"click": 1.0},
        "arms": {"control": {}, "other": {}},
    }
    layers = {"ranking": {"salt": "s", "unit": "user_id"}}
    (beside / "experiments.yaml").write_text(yaml.safe_dump({"layers": layers, "experiments": [experiment]}))
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    (tmp_path / "keys.yaml").write_text(f"keys:\n- {{name: b, scopes: [state, score, events], sha256: {digest}}}\n")
    return tmp_path / "models"


def test_two_hosts_agree(hosts: tuple[Host, list[Host]], models: Path, tmp_path: Path) -> None:
    middle, others = hosts
    redis = RedisServer(tmp_path, "--bind", "0.0.0.0", "--protected-mode", "no")
    middle.run(redis.start)
    with ExitStack() as stack:
        stack.callback(redis.kill)
        clients = []
        for number, host in enumerate(others, 1):
            events = tmp_path / f"events-{number}"
            events.mkdir()
            flags = ["--state", f"redis://10.77.{number}.1:{redis.port}/0", "--state-timeout-ms", "5000"]
            flags += ["--event-log", str(events), "--keys-file", str(tmp_path / "keys.yaml")]
            service = stack.enter_context(host.run(lambda: RunningService(models, *flags)))  # noqa: B023
            host.run(service.wait_ready)
            service.client.headers["Authorization"] = f"Bearer {KEY}"
            clients.append((host, service.client))

        def on(number: int, call: Callable[[httpx.Client], httpx.Response]) -> Any:
            host, client = clients[number]
            answer = host.run(lambda: call(client))
            assert answer.is_success, answer.text
            return answer.json()

        def rank(number: int, **user: Any) -> Any:
            return on(number, lambda client: client.post("/v1/rank", json={"user": user, "candidates": CANDIDATES}))

        path = "/v1/models/tiny/users/17"
        entry = {"value": 3, "time": "2026-01-02T03:04:05.000Z"}
        on(0, lambda client: client.put(path, json={"fields": {"country": "fr"}, "append": {"history": [entry]}}))
        event = {"request_id": "r", "type": "click", "id": "v", "event_id": "e", "user": 17, "video_id": 9}
        on(0, lambda client: client.post("/v1/events", json={"events": [event]}))
        wait_for(lambda: len(on(1, lambda client: client.get(path))["append"]["history"]) == 2)
        assert on(0, lambda client: client.get(path)) == on(1, lambda client: client.get(path))
        inline = rank(0, user_id=17, country="fr", history=[3, 9])["candidates"]
        assert [rank(number, user_id=17)["candidates"] for number in (0, 1)] == [inline, inline]
        # The arm of a unit by the rule of docs/experiments.md.
        expected = [
            "control" if xxhash.xxh3_64_intdigest(f"bold\0{unit}".encode()) % 10_000 < 5000 else "other"
            for unit in UNITS
        ]
        for number in (0, 1):
            assert [rank(number, user_id=unit)["experiments"]["bold"] for unit in UNITS] == expected
        on(1, lambda client: client.delete(path))
        assert rank(0, user_id=17)["candidates"] == rank(0, user_id=17, country=None, history=[])["candidates"]
