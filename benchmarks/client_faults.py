"""`make bench-client-faults`: share of rankings that the service answers while it fails, by each client.

    python -m benchmarks.client_faults [--seconds 30]

Rankings of 100 candidates on loopback, within 2 s each. Kills: a worker of two is killed (kill -9) as soon as both
serve. Restarts: two services stand behind HAProxy, which passes connections on, and each in turn is ended by SIGTERM,
drains and starts again. In both, four ask without pause. Overload: calls begin at three times the rate that the service
can answer, whether or not those before them have ended.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx

from benchmarks import report
from benchmarks.client_calls import ANSWERED, DEADLINE_SECONDS, Ends, Way, ways
from benchmarks.closed_loop import closed_loop
from benchmarks.command import run_benchmark
from benchmarks.reference_feed import NETWORK, SCHEMA, columnar_request
from benchmarks.serving_processes import free_port
from deploy.open_loop import message
from tests.artifacts import publish_artifact
from tests.service.running import RunningService

# So wide that the service, and not the clients beside it, is what has too much to do.
_WIDE = {"fusion": {**NETWORK["fusion"], "levels": [1024, 512]}, "tower": [64]}
_TIMES_CAPACITY = 3
_DRAIN_SECONDS = "2"
_PROXY = """
global
    maxconn 1000
defaults
    mode tcp
    timeout connect 1s
    timeout client 60s
    timeout server 60s
    retries 0
listen services
    bind 127.0.0.1:{port}
    option httpchk GET /readyz
    default-server check inter 200ms fall 1 rise 1
    server one 127.0.0.1:{one}
    server two 127.0.0.1:{two}
listen state
    mode http
    bind 127.0.0.1:{state}
    stats enable
    stats uri /
"""

# Disturbs a service until a time of time.monotonic, and returns how often.
Disturb = Callable[[float], int]


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each client under each fault")
    options = parser.parse_args()
    request = columnar_request(100, 0)
    rows: list[list[str]] = []
    raw: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        publish_artifact(folder / "models", "reference", schema=SCHEMA, network=NETWORK, request=request)
        publish_artifact(folder / "wide", "reference", schema=SCHEMA, network=_WIDE, request=request)
        for fault, context in (("kills", _killed), ("restarts", _restarted)):
            with context(folder) as (url, disturb), ways(url, request, folder) as clients:
                for way, client in clients.items():
                    times, ends = _disturbed(client, disturb, options.seconds)
                    raw[f"{fault}, {way}"] = {"times": times, "retries": ends.retries, **ends.calls}
                    rows.append(_row(f"{fault}: {times}", way, ends))
        with _overloaded(folder) as (url, rate), ways(url, request, folder) as clients:
            for way, client in clients.items():
                ends = client.ask_at_rate(_TIMES_CAPACITY * rate, options.seconds)
                times_capacity = ends.calls.total() / ends.seconds / rate
                raw[f"overload, {way}"] = {"rate": rate, "times": times_capacity, "retries": ends.retries, **ends.calls}
                rows.append(_row(f"{times_capacity:.2f} x {rate:.0f} a second", way, ends))
                time.sleep(DEADLINE_SECONDS)  # of its work none is left for the next
    body = [
        f"Rankings of 100 candidates in {options.seconds:.0f} s each, and the share that the service answers within "
        f"{DEADLINE_SECONDS:.0f} s. The others would get the caller's fallback. The clients' own counts are those of "
        "these calls. Bare calls are httpx and fetch with the deadline and no retry.",
        "",
        *report.table(["fault", "client", "calls", "answered by the service", "others", "retries"], rows),
    ]
    command = "make bench-client-faults"
    path = report.write("client_faults", "Clients of a service that fails", body, {"ends": raw}, command)
    print(path.read_text(encoding="utf-8"))


def _row(fault: str, way: str, ends: Ends) -> list[str]:
    others = ", ".join(f"{end} {number:,}" for end, number in sorted(ends.calls.items()) if end != ANSWERED)
    return [fault, way, f"{ends.calls.total():,}", f"{100 * ends.share:.3f} %", others or "none", f"{ends.retries:,}"]


def _disturbed(client: Way, disturb: Disturb, seconds: float) -> tuple[int, Ends]:
    """Number of times that the service was disturbed, and the ends of a client's calls meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client.ask, seconds)
        times = disturb(time.monotonic() + seconds)
        return times, asking.result()


@contextmanager
def _killed(folder: Path) -> Iterator[tuple[str, Disturb]]:
    """A service of two workers, of which one is killed again and again."""
    flags = ("--workers", "2", "--threads", "1", "--queue-seconds", "10")
    with RunningService(folder / "models", *flags) as service:
        service.wait_ready().wait_workers(2)
        gone: set[int] = set()

        def kill(end: float) -> int:
            times = 0
            while time.monotonic() < end:
                killed = random.choice(sorted(service.workers()))
                os.kill(killed, signal.SIGKILL)
                gone.add(killed)
                service.wait_workers(2, besides=gone)
                times += 1
            return times

        yield str(service.client.base_url).rstrip("/"), kill


@contextmanager
def _restarted(folder: Path) -> Iterator[tuple[str, Disturb]]:
    """Two services behind one address, each restarted in turn."""
    ports = {"one": free_port(), "two": free_port()}
    port, state = free_port(), free_port()
    (folder / "haproxy.cfg").write_text(_PROXY.format(port=port, state=state, **ports))

    def start(name: str) -> RunningService:
        flags = ("--port", str(ports[name]), "--threads", "1", "--queue-seconds", "10")
        return RunningService(folder / "models", *flags, "--drain-seconds", _DRAIN_SECONDS)

    def wait_seen() -> None:
        """Wait until HAProxy takes both for ready."""
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            with suppress(httpx.TransportError):  # it has just been started
                lines = httpx.get(f"http://127.0.0.1:{state}/;csv", trust_env=False).text.splitlines()
                if sum(",UP," in line for line in lines if line.startswith(("services,one", "services,two"))) == 2:
                    return
            time.sleep(0.05)
        raise RuntimeError("HAProxy does not find the services ready")

    with ExitStack() as stack:
        services = {name: stack.enter_context(start(name)).wait_ready() for name in ports}
        proxy = stack.enter_context(subprocess.Popen(["haproxy", "-q", "-f", str(folder / "haproxy.cfg")]))
        stack.callback(proxy.terminate)
        wait_seen()

        def restart(end: float) -> int:
            times = 0
            while time.monotonic() < end:
                name = list(ports)[times % 2]
                if services[name].stop(signal.SIGTERM) not in (0, -signal.SIGTERM):
                    raise RuntimeError("a service did not end in order")
                services[name] = stack.enter_context(start(name)).wait_ready()
                wait_seen()
                times += 1
            return times

        yield f"http://127.0.0.1:{port}", restart


@contextmanager
def _overloaded(folder: Path) -> Iterator[tuple[str, float]]:
    """A service, and the answers that it can give a second."""
    with RunningService(folder / "wide", "--threads", "1") as service:
        url = str(service.wait_ready().client.base_url).rstrip("/")
        requests = [message(url, "/v1/rank", json.dumps(columnar_request(100, seed)).encode()) for seed in range(8)]
        for seconds in (1.0, 5.0):  # the first warms it up
            rate = asyncio.run(closed_loop(url, requests, seconds, 4)).rate
        yield url, rate


if __name__ == "__main__":
    run_benchmark(main)
