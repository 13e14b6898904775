"""The Python client with a real service: whole ids, refusals, shedding, kills, and its README's blocks."""

import asyncio
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from feedrank import AsyncClient, Client, Ranking, RefusedError
from tests.clients.demo_service import ADDRESS, REQUEST, SNOWFLAKES, logged, publish_demo
from tests.clients.either_client import wait_for
from tests.deploy.programs import free_port
from tests.service.running import ROOT, RunningService

README = (ROOT / "clients/python/README.md").read_text(encoding="utf-8")
LONG = 60.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    publish_demo(folder)
    return folder


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("events")


@pytest.fixture(scope="module")
def service(models: Path, events: Path) -> Iterator[RunningService]:
    flags = ("--threads", "1", "--queue-seconds", "60", "--event-log", str(events))
    with RunningService(models, *flags) as running:
        yield running.wait_ready()


def address(service: RunningService) -> str:
    return str(service.client.base_url).rstrip("/")


def answered(service: RunningService, code: int) -> float:
    """Requests of /v1/rank that the service counts under a status."""
    name = rf'^ranking_requests_total{{code="{code}",endpoint="/v1/rank"}} (\S+)$'
    found = re.search(name, service.client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_both_clients_give_the_services_ranking(service: RunningService) -> None:
    def content(answer: dict[str, Any] | None) -> Any:
        return {**(answer or {}), "request_id": None}

    async def rank() -> Ranking:
        async with AsyncClient(address(service)) as client:
            return await client.rank(REQUEST, timeout=LONG)

    with Client(address(service)) as client:
        ranking = client.rank(REQUEST, timeout=LONG)
        other = client.rank({**REQUEST, "user": {**REQUEST["user"], "user_id": SNOWFLAKES[1]}}, timeout=LONG)
        rows: list[dict[str, Any]] = [{"id": one, "features": {}} for one in ("a", "b")]
        assert sorted(client.rank({**REQUEST, "candidates": rows}, timeout=LONG).ids) == ["a", "b"]
    bare = service.client.post("/v1/rank", json=REQUEST).json()
    assert content(ranking.answer) == content(asyncio.run(rank()).answer) == content(bare)
    assert ranking.ids == bare["candidates"]["id"]
    assert content(other.answer) != content(bare)  # the last digit of the id has arrived
    assert ranking.answer is not None
    assert ranking.answer["request_id"] == ranking.request_id


def test_strict_names_what_is_left_out(service: RunningService) -> None:
    with Client(address(service), strict=True) as client:
        with pytest.raises(RefusedError) as caught:
            client.rank(REQUEST, timeout=LONG, fallback=["a"])
        assert client.rank({**REQUEST, "strict": False}, timeout=LONG).ids
        counts = client.counts()
    assert caught.value.status == 422
    paths = {path for path, _ in caught.value.faults}
    assert {"user.user_activity", "candidates.features.creator"} <= paths
    assert (counts.answered, counts.refused) == (1, 1)


def test_a_retry_after_shedding_and_counts_as_the_service_has_them(models: Path) -> None:
    """Requests at once, until some were shed. Retry-After is within the deadline, so their retries come."""
    with (
        RunningService(models, "--threads", "1", "--queue-seconds", "0.001") as service,
        Client(address(service)) as client,
    ):
        service.wait_ready()

        def rank(_: int) -> Ranking:
            return client.rank(REQUEST, timeout=LONG, fallback=["a", "b"])

        calls = 0
        with ThreadPoolExecutor(16) as pool:
            while client.counts().retries == 0:
                assert calls < 10_000, "nothing was shed"
                calls += len(list(pool.map(rank, range(64))))
        counts = client.counts()
        assert counts.answered + counts.fallbacks == calls
        expected = (counts.answered, counts.retries + counts.fallbacks)
        service.wait_for(lambda: (answered(service, 200), answered(service, 429)) == expected)
        assert counts.reasons == ({"status 429": counts.fallbacks} if counts.fallbacks else {})


def test_kills_cost_fallbacks_and_no_event(models: Path, tmp_path: Path) -> None:
    """kill -9 while four threads rank, and again: every call has an order, every event is in the log once."""
    events, stop, lock = tmp_path / "events", threading.Event(), threading.Lock()
    events.mkdir()
    flags = ("--port", str(free_port()), "--threads", "1", "--queue-seconds", "60", "--event-log", str(events))
    orders: list[list[str]] = []
    sent = 0
    with RunningService(models, *flags) as first:
        first.wait_ready()
        client = Client(address(first), timeout=5, flush_seconds=0.01)

        def rank() -> None:
            nonlocal sent
            while not stop.is_set():
                ranking = client.rank(REQUEST, fallback=["b", "a"])
                event = {"request_id": ranking.request_id, "type": "play_time_ms", "id": "a", "value": 3}
                with lock:
                    orders.append(ranking.ids)
                    sent += client.event(event)
                stop.wait(0.002)  # leaves the cores to the service that starts

        threads = [threading.Thread(target=rank) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: client.counts().answered > 50 and client.counts().events_accepted > 50)
        first.process.kill()
        first.wait()
    wait_for(lambda: client.counts().fallbacks > 50)
    with RunningService(models, *flags) as second:
        before = client.counts().answered
        second.wait_for(lambda: client.counts().answered > before + 50)
        stop.set()
        for thread in threads:
            thread.join()
        second.wait_for(lambda: client.counts().events_waiting == 0)
        client.close()
        assert second.stop(signal.SIGINT) == 0
    counts = client.counts()
    assert counts.answered + counts.fallbacks == len(orders)
    assert {tuple(sorted(order)) for order in orders} == {("a", "b")}
    assert (counts.unavailable, counts.refused, counts.events_refused) == (0, 0, 0)
    assert (counts.events_accepted, counts.events_dropped) == (sent, len(orders) - sent)
    # A batch whose acceptance was lost with the process stands twice, by the same ids.
    assert len({line["event_id"] for line in logged(events)}) == sent


def test_blocks_of_the_readme(service: RunningService, events: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = len(logged(events))
    blocks = re.findall(r"^```python\n(.*?)^```$", README.replace(ADDRESS, address(service)), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    # Its deadline is no part of what is tested: this machine may be slow.
    names: dict[str, Any] = {}
    for block in blocks:
        assert "timeout=0.2" in block or "Client(" not in block
        exec(compile(block.replace("timeout=0.2", "timeout=60"), "README.md", "exec"), names)
    ranked, *several, counted, events_counted = capsys.readouterr().out.splitlines()
    assert ranked in ("['a', 'b'] False", "['b', 'a'] False")
    assert len(several) == 3
    assert set(several) <= {"['a', 'b']", "['b', 'a']"}
    assert (counted, events_counted) == ("4 0 {}", "3 0 0")
    lines = logged(events)[before:]
    assert sorted(line["type"] for line in lines) == ["play_time_ms", "shown", "shown", "shown"]


def test_the_wheel_is_whole(tmp_path: Path) -> None:
    """Built, installed, and imported where this repository is not. It has its types and needs httpx alone."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    copy = tmp_path / "source"
    subprocess.run(["cp", "-r", str(ROOT / "clients/python"), str(copy)], check=True)
    build = [*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(copy)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    modules = {path.name for path in (target / "feedrank").iterdir() if path.suffix != ".pyc"} - {"__pycache__"}
    assert modules == {path.name for path in (ROOT / "clients/python/feedrank").iterdir()} - {"__pycache__"}
    code = "import feedrank, importlib.metadata as m; print(feedrank.__file__, m.requires('feedrank-client'))"
    run = [sys.executable, "-c", code]
    done = subprocess.run(
        run, cwd=tmp_path, env={"PYTHONPATH": str(target)}, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == f"{target / 'feedrank/__init__.py'} ['httpx<1,>=0.27']"
