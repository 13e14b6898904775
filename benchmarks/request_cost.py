"""`make bench-request`: CPU time of a request, against a service written the usual way.

    python -m benchmarks.request_cost [--candidates 100]

Both services run as real uvicorn processes with one torch thread and serve the same random artifact of the reference
feed; one client sends them the same requests over loopback, one at a time. The servers' CPU time (user and system,
all threads, children included) is read from /proc before and after. Services take turns, A B C A B C, so that what
else the machine does falls on all of them; ratios are taken within a turn. Scores must agree, or there is no result.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks import report
from benchmarks.reference_feed import NETWORK, SCHEMA, as_rows, columnar_request
from model.scorer import Scorer
from tests.artifacts import publish_artifact

START_SECONDS = 120.0
WARM_UP = 30
# Both run the same float32 module; the block of candidates is laid out the same way, so this is rounding alone.
TOLERANCE = 1e-5
USUAL = "usual way, rows"
COLUMNS, ROWS = "feedrank, columns", "feedrank, rows"


@dataclass(frozen=True)
class Server:
    """A running service: where it listens, its process."""

    client: httpx.Client
    pid: int

    def cpu_seconds(self) -> float:
        """CPU seconds of the process and of the children it has waited for, user and system."""
        text = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii")
        fields = text.rpartition(")")[2].split()  # the name before it may hold blanks; utime is field 14 of the line
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serve(arguments: Sequence[str], ready: str, port: int, **environment: str) -> Iterator[Server]:
    """A server process until the block ends. Raises RuntimeError if it does not start."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with subprocess.Popen([sys.executable, "-m", *arguments], env=variables) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
                _wait(client, ready, process)
                yield Server(client, process.pid)
        finally:
            process.terminate()


def _wait(client: httpx.Client, ready: str, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up and process.poll() is None:
        try:
            if client.get(ready).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{process.args!r} was not ready within {START_SECONDS:g} s")


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass(frozen=True)
class Variant:
    """One way to ask: a server, a route, request bodies."""

    server: Server
    path: str
    bodies: list[bytes]

    def ask(self, number: int) -> httpx.Response:
        """Sends one request. Raises httpx.HTTPStatusError if it is refused."""
        body = self.bodies[number % len(self.bodies)]
        headers = {"Content-Type": "application/json"}
        return self.server.client.post(self.path, content=body, headers=headers).raise_for_status()

    def cpu_ms(self, requests: int) -> float:
        """CPU milliseconds of the server per request."""
        before = self.server.cpu_seconds()
        for number in range(requests):
            self.ask(number)
        return (self.server.cpu_seconds() - before) / requests * 1e3

    def scores(self) -> dict[str, float]:
        """The score of every candidate of the first request."""
        candidates = self.ask(0).json()["candidates"]
        if isinstance(candidates, dict):
            return dict(zip(candidates["id"], candidates["score"], strict=True))
        return {row["id"]: row["score"] for row in candidates}


def _check_scores(variants: dict[str, Variant]) -> float:
    """The largest difference between scores. Raises RuntimeError where they do not agree."""
    expected = variants[USUAL].scores()
    largest = 0.0
    for name, variant in variants.items():
        scores = variant.scores()
        if scores.keys() != expected.keys():
            raise RuntimeError(f"{name} answered other candidates")
        largest = max(largest, *(abs(scores[key] - expected[key]) for key in expected))
    if largest > TOLERANCE:
        raise RuntimeError(f"scores differ by {largest:g}, more than {TOLERANCE:g}: nothing to compare")
    return largest


def _ranker_cpu_ms(artifact: Path, request: dict[str, Any], repeats: int = 200) -> float:
    """CPU milliseconds of encoding and scoring a request, in a warm loop without a service around it."""
    torch.set_num_threads(1)
    scorer = Scorer.load(artifact)
    candidates = request["candidates"]
    rows = len(candidates["id"])
    columns = scorer.encoder.columns("request", {name: [value] for name, value in request["user"].items()}, 1)
    features = scorer.encoder.columns("candidate", candidates["features"], rows)
    for _ in range(WARM_UP):
        scorer.score(columns, features, rows)
    before = time.process_time()
    for _ in range(repeats):
        scorer.score(columns, features, rows)
    return (time.process_time() - before) / repeats * 1e3


def _usual(request: dict[str, Any]) -> dict[str, Any]:
    rows = as_rows(request)["candidates"]
    return {"user": request["user"], "candidates": [{"id": row["id"], **row["features"]} for row in rows]}


def measure(candidates: int, turns: int, requests: int) -> dict[str, Any]:
    """CPU milliseconds per request of each variant, turn by turn."""
    questions = [columnar_request(candidates, seed) for seed in range(8)]
    with ExitStack() as stack:
        models = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="feedrank-bench-")))
        artifact = publish_artifact(models, "reference", schema=SCHEMA, network=NETWORK, request=questions[0])
        port, usual_port = free_port(), free_port()
        flags = ["--models", str(models), "--port", str(port), "--threads", "1", "--log-level", "warning"]
        ours = stack.enter_context(serve(["service", *flags], "/readyz", port))
        command = ["uvicorn", "benchmarks.usual_service:app", "--port", str(usual_port), "--log-level", "warning"]
        usual = stack.enter_context(serve(command, "/ready", usual_port, USUAL_SERVICE_ARTIFACT=str(artifact)))
        encoded = {
            USUAL: [json.dumps(_usual(question)).encode() for question in questions],
            COLUMNS: [json.dumps(question).encode() for question in questions],
            ROWS: [json.dumps(as_rows(question)).encode() for question in questions],
        }
        variants = {
            USUAL: Variant(usual, "/rank", encoded[USUAL]),
            COLUMNS: Variant(ours, "/v1/rank", encoded[COLUMNS]),
            ROWS: Variant(ours, "/v1/rank", encoded[ROWS]),
        }
        difference = _check_scores(variants)
        ranker = _ranker_cpu_ms(artifact, questions[0])
        for variant in variants.values():
            variant.cpu_ms(WARM_UP)
        cpu_ms: dict[str, list[float]] = {name: [] for name in variants}
        for turn in range(turns):
            for name, variant in variants.items():
                cpu_ms[name].append(variant.cpu_ms(requests))
            print(f"turn {turn + 1} of {turns}: " + ", ".join(f"{name} {cpu_ms[name][-1]:.2f} ms" for name in variants))
    return {
        "candidates": candidates,
        "requests_per_turn": requests,
        "cpu_ms_per_request": cpu_ms,
        "ranker_alone_cpu_ms": ranker,
        "largest_score_difference": difference,
        "body_bytes": {name: len(bodies[0]) for name, bodies in encoded.items()},
    }


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--requests", type=int, default=150, help="requests per service and turn")
    options = parser.parse_args()
    data = measure(options.candidates, options.turns, options.requests)
    cpu_ms = data["cpu_ms_per_request"]
    rows = []
    for name, values in cpu_ms.items():
        ratios = [usual / value for usual, value in zip(cpu_ms[USUAL], values, strict=True)]
        rows.append([name, _spread(values, 2), _spread(ratios, 2)])
    body = [
        f"One request with {options.candidates} candidates; {options.turns} turns of {options.requests} requests for "
        "each service in turn, one torch thread, one request at a time. Median (least to most).",
        "",
        *report.table(["service", "CPU ms per request", "times cheaper than the usual way"], rows),
        "",
        f"Encoding and scoring alone, in a warm loop of one process, cost {data['ranker_alone_cpu_ms']:.2f} ms: both "
        "services run this ranker, so another service around it can win no more than the rest.",
        "",
        f"Largest difference between the services' scores: {data['largest_score_difference']:.1g}.",
    ]
    print("\n".join(body))
    flags = f" --candidates {options.candidates}" if options.candidates != 100 else ""
    name = "request_cost" if options.candidates == 100 else f"request_cost_{options.candidates}"
    print(report.write(name, "CPU time of a scoring request", body, data, f"python -m benchmarks.request_cost{flags}"))


if __name__ == "__main__":
    main()
