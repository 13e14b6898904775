"""`make bench-reliability`: what disturbs a service under load, and by how much.

    python -m benchmarks.reliability [--seconds 10] [--swaps 10] [--turns 8]

One worker on one core, open-loop Poisson load from another core, requests of 100 candidates of the reference feed. Its
capacity is found for each turn, by four clients that send again as soon as they are answered. Then 80 % of it with
each disturbance, and three times of it, each right after 80 % undisturbed or, every other turn, right before: a shared
machine is not as fast now as it was a minute ago. Latency counts from the moment at which a request was due. A bad disk
is one of a service beside the first, which gets no requests meanwhile.

Shapes: R requests.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from benchmarks import report, slow_clients
from benchmarks.closed_loop import closed_loop
from benchmarks.command import run_benchmark
from benchmarks.ratio import Ratio
from benchmarks.reference_feed import NETWORK, SCHEMA, columnar_request
from benchmarks.service_on_a_bad_disk import SLOW_SECONDS
from benchmarks.serving_processes import CLIENT_CORES, SERVER_CORES, free_port, serve
from deploy.open_loop import Outcome, message, offer, poisson
from tests.artifacts import publish_artifact

CANDIDATES = 100
LOAD = 0.8
UNDISTURBED, OVERLOAD, RECOVERED = "80 % load", "three times capacity", "5 s later"
SLOW_START_SECONDS = 5.0  # until the process of the slow clients has imported, and has opened them all
PATIENCE_SECONDS = 30.0
RECOVERY_SECONDS = 5.0
NAME = "reference"


class Bench:
    """A running service and the requests that it gets."""

    def __init__(self, url: str, models: Path, staged: Path) -> None:
        self.url = url
        self.models = models
        self.staged = staged
        bodies = [json.dumps(columnar_request(CANDIDATES, seed)).encode() for seed in range(8)]
        self.messages = [message(url, "/v1/rank", body) for body in bodies]

    def capacity(self, seconds: float) -> float:
        """Answers a second to four clients that ask again as soon as they are answered."""
        return asyncio.run(closed_loop(self.url, self.messages, seconds, 4)).rate

    def load(self, rate: float, seconds: float, turn: int) -> Outcome:
        """Open-loop load. All scenarios of a turn have the same arrivals, whose bunching alone moves p99 by half."""
        return asyncio.run(offer(self.url, self.messages, poisson(rate, seconds, turn)))

    @contextmanager
    def swaps(self, seconds: float) -> Iterator[None]:
        """New versions appear, evenly over the time."""
        versions = sorted(self.staged.iterdir(), key=lambda version: int(version.name))

        def publish() -> None:
            for version in versions:
                if is_over.wait(seconds / len(versions)):
                    return
                version.rename(self.models / NAME / version.name)

        is_over = threading.Event()
        thread = threading.Thread(target=publish)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    @contextmanager
    def slow_clients(self, seconds: float) -> Iterator[None]:
        """Clients that dribble, and huge bodies (benchmarks.slow_clients)."""
        del seconds
        command = [sys.executable, "-m", "benchmarks.slow_clients", self.url]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                time.sleep(SLOW_START_SECONDS)
                yield
            finally:
                process.kill()

    @contextmanager
    def shadow(self, seconds: float) -> Iterator[None]:
        """The first version scores beside the one that is served, as much as there is time for."""
        del seconds
        self._label("{shadow: 1}", {"shadow": "1"})
        try:
            yield
        finally:
            self._label("{}", {})

    def _label(self, text: str, expected: dict[str, Any]) -> None:
        (self.models / NAME / "labels.yaml").write_text(text, encoding="utf-8")
        give_up = time.monotonic() + PATIENCE_SECONDS
        while self.entry()["labels"] != expected:
            if time.monotonic() > give_up:
                raise RuntimeError(f"labels {text} were not taken up: {self.entry()}")
            time.sleep(0.1)

    def entry(self) -> dict[str, Any]:
        """The model as /v1/models shows it."""
        entry: dict[str, Any] = httpx.get(f"{self.url}/v1/models", trust_env=False).json()["models"][0]
        return entry

    def results(self, metric: str) -> Counter[str]:
        """The samples of a metric by their label `result`."""
        found: Counter[str] = Counter()
        for family in text_string_to_metric_families(httpx.get(f"{self.url}/metrics", trust_env=False).text):
            for sample in family.samples:
                if sample.name == metric:
                    found[sample.labels["result"]] += int(sample.value)
        return found


def _milliseconds(seconds: Any, percentile: float) -> float | None:
    return float(np.percentile(seconds, percentile)) * 1e3 if len(seconds) else None


def _summary(outcome: Outcome, seconds: float) -> dict[str, Any]:
    statuses, counts = np.unique(outcome.status_R, return_counts=True)
    answered, shed = outcome.of(200), outcome.of(429)
    return {
        "requests": len(outcome.due_R),
        "statuses": {str(status): int(count) for status, count in zip(statuses, counts, strict=True)},
        "goodput": len(answered) / seconds,
        "p50_ms": _milliseconds(answered, 50),
        "p99_ms": _milliseconds(answered, 99),
        "shed_p50_ms": _milliseconds(shed, 50),
        "shed_p99_ms": _milliseconds(shed, 99),
        "client_lateness_ms": outcome.lateness * 1e3,
    }


@contextmanager
def _service(folder: Path, disk: str | None) -> Iterator[Bench]:
    """A running service. With `disk`, slow or full, its impression log is on one."""
    port = free_port()
    flags = ["--threads", "1", "--log-level", "error", "--poll-seconds", "0.2"]
    module = ["service"]
    if disk is not None:
        (folder / disk).mkdir()
        module = ["benchmarks.service_on_a_bad_disk", disk]
        flags += ["--impression-log", str(folder / disk)]
    command = [sys.executable, "-m", *module, "--models", str(folder / "models"), "--port", str(port), *flags]
    with serve(command, "/readyz", port, folder / f"log-{disk}", SERVER_CORES) as server:
        yield Bench(server.url, folder / "models", folder / "staged")


@dataclass
class Turn:
    """One turn: every disturbance beside a time without it. `rows` and `lost` are what was measured in all turns."""

    number: int
    bench: Bench
    folder: Path
    seconds: float
    show: Callable[[str], None]
    rows: list[dict[str, Any]]
    lost: dict[str, float]
    capacity: float = 0.0

    def run(self, swaps: int) -> None:
        """All of them."""
        self.capacity = self.bench.capacity(self.seconds / 3)
        self.show(f"turn {self.number + 1}: capacity {self.capacity:.0f} requests a second")
        for name, disturbance in (
            (f"{swaps} new versions", self.bench.swaps),
            (f"{slow_clients.CLIENTS} slow clients, 50 MB bodies", self.bench.slow_clients),
            ("a shadow version", self.bench.shadow),
        ):
            self._compare(name, partial(self._disturbed, name, disturbance))
        for disk in ("slow", "full"):
            name = f"impression log, disk {disk}"
            self._compare(name, partial(self._on_a_bad_disk, name, disk))
        self._compare(OVERLOAD, self._overload)

    def _compare(self, name: str, disturbed: Callable[[], None]) -> None:
        steps: list[Callable[[], None]] = [partial(self._undisturbed, name), disturbed]
        for step in steps if self.number % 2 == 0 else reversed(steps):
            step()

    def _add(self, name: str, outcome: Outcome, seconds: float, beside: str | None = None) -> None:
        row: dict[str, Any] = {"turn": self.number, "name": name, "beside": beside, "capacity": self.capacity}
        row |= _summary(outcome, seconds)
        self.rows.append(row)
        shown = _spread([row["p99_ms"]]).partition(" ")[0]
        self.show(f"turn {self.number + 1}: {name}: {row['statuses']}, p99 {shown} ms")

    def _load(self, bench: Bench, seconds: float) -> Outcome:
        return bench.load(LOAD * self.capacity, seconds, self.number)

    def _undisturbed(self, beside: str) -> None:
        self._add(UNDISTURBED, self._load(self.bench, self.seconds), self.seconds, beside)

    def _disturbed(self, name: str, disturbance: Callable[[float], AbstractContextManager[None]]) -> None:
        with disturbance(self.seconds):
            outcome = self._load(self.bench, self.seconds)
        self._add(name, outcome, self.seconds)

    def _on_a_bad_disk(self, name: str, disk: str) -> None:
        with _service(self.folder, disk) as other:
            other.capacity(1.0)
            self._add(name, self._load(other, self.seconds), self.seconds)
            impressions = other.results("ranking_impression_log_total")
            self.lost[disk] = 1 - impressions["written"] / max(1, impressions.total())
        shutil.rmtree(self.folder / disk)

    def _overload(self) -> None:
        self.capacity = self.bench.capacity(self.seconds)
        outcome = self.bench.load(3 * self.capacity, 2 * self.seconds, self.number)
        self._add(OVERLOAD, outcome, 2 * self.seconds)
        after = self._load(self.bench, RECOVERY_SECONDS + self.seconds)
        is_late = after.due_R >= RECOVERY_SECONDS
        due_R, seconds_R, status_R = after.due_R[is_late], after.seconds_R[is_late], after.status_R[is_late]
        self._add(RECOVERED, Outcome(due_R, seconds_R, status_R, after.lateness, after.said), self.seconds)


def measure(seconds: float, swaps: int, turns: int, show: Callable[[str], None]) -> dict[str, Any]:
    """All scenarios, turn by turn."""
    os.sched_setaffinity(0, CLIENT_CORES)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="feedrank-bench-")))
        request = columnar_request(CANDIDATES, 0)
        show("publishing versions to swap in")
        for seed in range(1 + swaps * turns):
            publish_artifact(folder / "all", NAME, schema=SCHEMA, network=NETWORK, request=request, seed=seed)
        (folder / "models" / NAME).mkdir(parents=True)
        (folder / "all" / NAME / "1").rename(folder / "models" / NAME / "1")
        bench = stack.enter_context(_service(folder, None))
        bench.capacity(2.0)
        rows: list[dict[str, Any]] = []
        lost: dict[str, float] = {}
        bench.staged.mkdir()
        for number in range(turns):
            for version in range(2 + number * swaps, 2 + (number + 1) * swaps):
                (folder / "all" / NAME / str(version)).rename(bench.staged / str(version))
            Turn(number, bench, folder, seconds, show, rows, lost).run(swaps)
        shadowed = bench.results("ranking_shadow_requests_total")
        loads = bench.results("ranking_model_load_total")["ready"]
        served = bench.entry()["default_version"]
    known = {"served_at_the_end": served, "loads": loads, "shadow": shadowed, "impressions_lost": lost}
    return {"seconds": seconds, "rows": rows, **known}


def _spread(values: list[float | None], digits: int = 1) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.median(known):.{digits}f} ({min(known):.{digits}f} to {max(known):.{digits}f})"


def _table(data: dict[str, Any]) -> list[str]:
    turns = sorted({row["turn"] for row in data["rows"]})
    base = {(row["turn"], row["beside"]): row for row in data["rows"] if row["name"] == UNDISTURBED}
    names = list(dict.fromkeys(row["name"] for row in data["rows"]))
    rows = []
    for name in names:
        of = [row for row in data["rows"] if row["name"] == name]
        total = {status: sum(row["statuses"].get(status, 0) for row in of) for status in ("200", "429")}
        other = sum(row["requests"] for row in of) - sum(total.values())
        beside = OVERLOAD if name == RECOVERED else name
        bases = [base[row["turn"], beside] for row in of] if name != UNDISTURBED else of
        ratio = Ratio.of([row["p99_ms"] for row in of], [row["p99_ms"] for row in bases])
        rows.append(
            [
                name,
                f"{total['200']:,}",
                f"{total['429']:,}",
                str(other),
                _spread([row["goodput"] / row["capacity"] for row in of], 2),
                _spread([row["p50_ms"] for row in of]),
                _spread([row["p99_ms"] for row in of]),
                "1" if name == UNDISTURBED else str(ratio),
                _spread([row["shed_p50_ms"] for row in of]),
                _spread([row["shed_p99_ms"] for row in of]),
            ]
        )
    return [
        f"Medians (least to most) over {len(turns)} turns, an undisturbed time beside every other. Goodput is in "
        "shares of the turn's capacity, which for the overload is measured again right before, "
        f"{_spread([row['capacity'] for row in base.values()], 0)} requests of {CANDIDATES} candidates a second on one "
        "core. Latency is in ms, from the moment a request was due. The ratio is a geometric mean over turns with its "
        "95 % interval.",
        "",
        *report.table(
            ["load", "200", "429", "other", "goodput", "p50", "p99", "p99, times undisturbed", "429 p50", "429 p99"],
            rows,
        ),
        "",
        f"Versions loaded: {data['loads']}. Requests that the shadow version scored: {data['shadow']['scored']}, and "
        f"left out for want of time: {data['shadow']['dropped']}. Impressions lost on the slow disk, where a "
        f"write takes {SLOW_SECONDS:g} s: {data['impressions_lost']['slow']:.0%}, on the full one: "
        f"{data['impressions_lost']['full']:.0%}.",
        "",
        f"The client left late by {max(row['client_lateness_ms'] for row in data['rows']):.1f} ms at worst.",
    ]


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of one scenario; overload takes twice as long")
    parser.add_argument("--swaps", type=int, default=10, help="new versions in a turn")
    parser.add_argument("--turns", type=int, default=8)
    options = parser.parse_args()
    data = measure(options.seconds, options.swaps, options.turns, Console().print)
    body = _table(data)
    print("\n".join(body))
    given = f"--seconds {options.seconds:g} --swaps {options.swaps} --turns {options.turns}"
    print(report.write("reliability", "A service disturbed", body, data, f"python -m benchmarks.reliability {given}"))


if __name__ == "__main__":
    run_benchmark(main)
