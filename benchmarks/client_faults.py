"""`make bench-client-faults`: the share of rankings that the service answers while workers are killed, by each client.

    python -m benchmarks.client_faults [--seconds 30]

A service of two workers on loopback. Four threads ask without pause, by the Python client or by bare httpx, for at most
2 s each. A worker is killed (kill -9) as soon as both serve.
"""

import argparse
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx

from benchmarks import report
from benchmarks.command import run_benchmark
from benchmarks.reference_feed import NETWORK, SCHEMA, columnar_request
from feedrank import Client
from tests.artifacts import publish_artifact
from tests.service.running import RunningService

_DEADLINE = 2.0
_THREADS = 4


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each client")
    options = parser.parse_args()
    rows, raw = [], {}
    with tempfile.TemporaryDirectory() as name:
        models = Path(name)
        publish_artifact(models, "reference", schema=SCHEMA, network=NETWORK, request=columnar_request(2, 0))
        for way in ("bare httpx", "Client"):
            with RunningService(models, "--workers", "2", "--threads", "1", "--queue-seconds", "10") as service:
                service.wait_ready().wait_workers(2)
                ends = _ends(service, way, options.seconds)
            raw[way] = dict(ends)
            answered, kills, retries = (ends.pop(name) for name in ("answered", "kills", "retries"))
            others = ", ".join(f"{end} {number}" for end, number in sorted(ends.items()))
            share = f"{100 * answered / (answered + ends.total()):.3f} %"
            rows.append([way, str(kills), f"{answered + ends.total():,}", share, others or "none", str(retries)])
    body = [
        f"Rankings of 100 candidates in {options.seconds:.0f} s each, and the share that the service answers within "
        f"{_DEADLINE:.0f} s. The others would get the caller's fallback.",
        "",
        *report.table(["client", "kills", "calls", "answered by the service", "others", "retries"], rows),
    ]
    command = "make bench-client-faults"
    path = report.write("client_faults", "Clients while workers are killed", body, {"ends": raw}, command)
    print(path.read_text(encoding="utf-8"))


def _ends(service: RunningService, way: str, seconds: float) -> "Counter[str]":
    """Calls by their end, with the kills and the retries."""
    url, request = str(service.client.base_url).rstrip("/"), columnar_request(100, 0)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=60)
    ends: Counter[str] = Counter()
    gone: set[int] = set()
    with httpx.Client(limits=limits, timeout=_DEADLINE, trust_env=False) as http, Client(url) as client:

        def bare() -> str:
            try:
                headers = {"X-Request-Timeout-Ms": str(int(1000 * _DEADLINE))}
                status = http.post(f"{url}/v1/rank", json=request, headers=headers).status_code
            except httpx.TransportError as error:
                return "timeout" if isinstance(error, httpx.TimeoutException) else "connection"
            return "answered" if status == 200 else f"status {status}"

        def own() -> str:
            return client.rank(request, timeout=_DEADLINE, fallback=[]).reason or "answered"

        end = time.monotonic() + seconds
        asking = [
            threading.Thread(target=_ask, args=(own if way == "Client" else bare, end, ends)) for _ in range(_THREADS)
        ]
        for thread in asking:
            thread.start()
        while time.monotonic() < end:
            killed = random.choice(sorted(service.workers()))
            os.kill(killed, signal.SIGKILL)
            ends["kills"] += 1
            gone.add(killed)
            service.wait_workers(2, besides=gone)
        for thread in asking:
            thread.join()
        ends["retries"] = client.counts().retries
    return ends


_lock = threading.Lock()


def _ask(call: Callable[[], str], end: float, ends: "Counter[str]") -> None:
    while time.monotonic() < end:
        result = call()
        with _lock:
            ends[result] += 1


if __name__ == "__main__":
    run_benchmark(main)
