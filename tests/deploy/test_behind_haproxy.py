"""Two replicas behind a real HAProxy that polls /readyz: restarted in turn, and given a new model, under load.

HAProxy may not try again: what a replica fails, the client sees.
"""

import asyncio
import json
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from deploy.open_loop import message, offer, poisson
from tests.artifacts import TINY_REQUEST, publish_artifact
from tests.deploy.programs import free_port, program, running, wait_for
from tests.reliability.load import metric
from tests.service.running import RunningService

LOOK_MS = 100
# Far beyond two polls: a busy machine may delay them.
DRAIN_SECONDS = "3"
RATE = 30.0
CONFIG = """
global
    maxconn 1000
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s
    # By default a look that takes longer than the time between two has failed.
    timeout check 10s
    retries 0
frontend all
    bind 127.0.0.1:{port}
    default_backend replicas
backend replicas
    balance roundrobin
    option httpchk GET /readyz
    http-check expect status 200
    default-server check inter {look}ms fall 1 rise 1
    server a 127.0.0.1:{a}
    server b 127.0.0.1:{b}
"""
pytestmark = pytest.mark.slow


class SteadyLoad:
    """Open-loop load in a thread, for as long as the block lasts. Statuses by number."""

    def __init__(self, url: str) -> None:
        self.statuses: Counter[int] = Counter()
        self.said: dict[int, str] = {}
        self._url = url
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._ask, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def wait_for_more(self, number: int) -> None:
        """Wait until so many requests more have ended."""
        wanted = self.statuses.total() + number
        wait_for(lambda: self.statuses.total() >= wanted, lambda: self.statuses)

    def _ask(self) -> None:
        asked = [message(self._url, "/v1/rank", json.dumps(TINY_REQUEST).encode())]
        seed = 0
        while not self._stop.is_set():
            outcome = asyncio.run(offer(self._url, asked, poisson(RATE, 0.5, seed), timeout=60))
            self.statuses.update(outcome.status_R.tolist())
            self.said |= outcome.said
            seed += 1


class Replicas:
    """Two services of one models folder on ports of their own."""

    def __init__(self, models: Path, stack: ExitStack) -> None:
        self._models, self._stack = models, stack
        self.ports = (free_port(), free_port())
        starting = [self._starting(port) for port in self.ports]  # both at once
        self.running = [stack.enter_context(replica).wait_ready() for replica in starting]

    def started(self, port: int) -> RunningService:
        """A replica that is ready."""
        return self._stack.enter_context(self._starting(port)).wait_ready()

    def _starting(self, port: int) -> RunningService:
        flags = ("--port", str(port), "--threads", "1", "--queue-seconds", "10", "--drain-seconds", DRAIN_SECONDS)
        return RunningService(self._models, *flags)


def scored_by(replica: RunningService) -> float:
    return metric(replica.client, "ranking_requests_total", endpoint="/v1/rank", code="200")


def test_no_request_fails_while_replicas_and_the_model_are_replaced(tmp_path: Path) -> None:
    haproxy = program("haproxy", "haproxy")
    publish_artifact(tmp_path / "models", seed=1)
    with ExitStack() as stack:
        replicas = Replicas(tmp_path / "models", stack)
        a, b = replicas.ports
        port = free_port()
        (tmp_path / "haproxy.cfg").write_text(CONFIG.format(port=port, look=LOOK_MS, a=a, b=b))
        stack.enter_context(running([haproxy, "-db", "-f", str(tmp_path / "haproxy.cfg")], tmp_path / "log"))
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: _answers(url), (tmp_path / "log").read_text)
        load = SteadyLoad(url)
        with load.running():
            load.wait_for_more(20)
            for number, replica_port in enumerate(replicas.ports):
                assert replicas.running[number].stop(signal.SIGTERM) == 0
                load.wait_for_more(20)
                replicas.running[number] = replica = replicas.started(replica_port)
                replica.wait_for(lambda replica=replica: scored_by(replica) > 5)  # type: ignore[misc]
            publish_artifact(tmp_path / "models", seed=2)
            for replica in replicas.running:
                replica.wait_for(lambda replica=replica: _version(replica) == "2")  # type: ignore[misc]
            load.wait_for_more(20)
        assert load.statuses.keys() == {200}, (load.statuses, load.said)
        assert min(map(scored_by, replicas.running)) > 10


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _version(replica: RunningService) -> str | None:
    version: str | None = replica.client.get("/v1/models").json()["models"][0]["default_version"]
    return version
