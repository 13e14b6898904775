"""`make bench-workers`: threads and worker processes of the service, how its cost grows, and what a batch could save.

    python -m benchmarks.workers [--turns 7] [--requests 150] [--note TEXT]

Services of one artifact of the reference feed (TorchScript, columnar requests) run as real processes on all cores, but
for `one worker`, which has the first core. A load generator of its own, which shares those cores, sends them the same
requests over loopback, 8 at a time, in turns A B C D, D C B A. Its CPU time is stated beside theirs. Ratios are taken
within a turn. Memory is the resident set of the service's process. What scoring several users at once could save is
measured in this process, without a service.

Shapes: F outputs over the raw row.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from benchmarks import report
from benchmarks.command import run_benchmark
from benchmarks.load_generator import Block
from benchmarks.reference_feed import NETWORK, SCHEMA, columnar_request
from benchmarks.serving_processes import LoadGenerator, Server, free_port, load_generator, serve
from model.scorer.scorer import Scorer
from tests.artifacts import publish_artifact

CORES = frozenset(os.sched_getaffinity(0))
ONE, TWO, BOUND, THREADS = "one worker", "two workers", "two workers, bound", "one worker, two threads"
FLAGS = {
    ONE: ["--workers", "1", "--threads", "1"],
    TWO: ["--workers", "2", "--threads", "1"],
    BOUND: ["--workers", "2", "--threads", "1", "--bind-cores", "true"],
    THREADS: ["--workers", "1", "--threads", "2"],
}
CONCURRENCY = 8
CANDIDATES = 100
GROWTH = (100, 1000)
MOST_CANDIDATES = 2000
BATCHED = (1, 10, 100)
BLOCK_SECONDS = 60.0


@dataclass(frozen=True)
class Services:
    """Running services by name, and the load generator."""

    servers: dict[str, Server]
    generator: LoadGenerator
    folder: Path

    def send_block(self, name: str, candidates: int, requests: int, concurrency: int = CONCURRENCY) -> dict[str, float]:
        """One block of requests: CPU milliseconds of server and client per request, requests per second, latencies."""
        bodies = self.folder / f"{candidates}.json"
        if not bodies.exists():
            bodies.write_text(json.dumps([json.dumps(columnar_request(candidates, seed)) for seed in range(4)]))
        server = self.servers[name]
        before = server.cpu()
        load = self.generator(Block(server.port, "/v1/rank", str(bodies), requests, concurrency, BLOCK_SECONDS))
        spent = server.cpu().seconds_since(before)
        answered = len(load.latencies)
        return {
            "server_cpu_ms": spent / answered * 1e3,
            "client_cpu_ms": load.client_cpu_seconds / answered * 1e3,
            "requests_per_second": answered / load.seconds,
            "p50_ms": statistics.median(load.latencies) * 1e3,
            "p99_ms": statistics.quantiles(load.latencies, n=100)[98] * 1e3,
        }

    def resident_mib(self, name: str) -> float:
        """The resident set of a service's own process."""
        lines = Path(f"/proc/{self.servers[name].pid}/status").read_text(encoding="ascii").splitlines()
        (kib,) = (int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
        return kib / 1024


def measure(console: Console, turns: int, requests: int) -> dict[str, Any]:
    """All raw figures. Raises RuntimeError where a service does not start or refuses a request."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="feedrank-bench-")))
        models = folder / "models"
        artifact = publish_artifact(
            models, "reference", schema=SCHEMA, network=NETWORK, request=columnar_request(CANDIDATES, 0)
        )
        servers = {}
        with console.status("starting the services"):
            for name, flags in FLAGS.items():
                port = free_port()
                command = [sys.executable, "-m", "service", "--models", str(models), "--port", str(port), *flags]
                cores = frozenset([min(CORES)]) if name == ONE else CORES
                log = folder / f"{name}.log"
                command += ["--log-level", "warning", "--queue-seconds", "60"]
                server = serve(command, "/readyz", port, log, cores)
                servers[name] = stack.enter_context(server)
        services = Services(servers, stack.enter_context(load_generator()), folder)
        for name in servers:
            services.send_block(name, CANDIDATES, 50)
        blocks: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        growth: dict[str, list[float]] = {str(candidates): [] for candidates in GROWTH}
        for turn in track(range(turns), "turns", console=console):
            order = list(servers)[:: 1 if turn % 2 else -1]
            for name in order:
                blocks[name].append(services.send_block(name, CANDIDATES, requests))
            for candidates in GROWTH[:: 1 if turn % 2 else -1]:
                count = max(10, requests * GROWTH[0] // candidates)
                growth[str(candidates)].append(services.send_block(ONE, candidates, count, 1)["server_cpu_ms"])
        memory = [services.resident_mib(ONE)]
        with console.status(f"memory at {MOST_CANDIDATES} candidates"):
            for _ in range(4):
                services.send_block(ONE, MOST_CANDIDATES, 40)
                memory.append(services.resident_mib(ONE))
        with console.status("batches"):
            batches = batch_savings(artifact)
    return {"blocks": blocks, "growth_cpu_ms": growth, "resident_mib": memory, "batches_cpu_ms": batches}


def batch_savings(artifact: Path) -> dict[str, dict[str, float]]:
    """CPU milliseconds, by candidates of a request, of scoring eight requests one by one, and with all their candidates
    at once. The latter is the cost of scoring several users together."""
    torch.set_num_threads(1)
    scorer = Scorer.load(artifact)
    encoder, module = scorer.encoder, scorer.module

    def savings(candidates: int) -> dict[str, float]:
        request = columnar_request(candidates, 0)
        user = encoder.encode_request(request["user"])
        features = encoder.columns("candidate", request["candidates"]["features"], candidates)
        many = columnar_request(candidates * CONCURRENCY, 0)["candidates"]["features"]
        rows = candidates * CONCURRENCY
        block = encoder.encode("candidate", encoder.columns("candidate", many, rows), rows, as_served=True).block

        def one_by_one() -> None:
            for _ in range(CONCURRENCY):
                scorer.score(user, encoder.encode("candidate", features, candidates, as_served=True))

        def together() -> None:
            with torch.inference_mode():
                for _ in range(CONCURRENCY):
                    encoder.encode("candidate", features, candidates, as_served=True)
                    sums_1F = scorer.request_sums(encoder.encode_request(request["user"]).block)
                module.answer(scorer.candidate_rows(block), sums_1F)

        return {"one_by_one": _cpu_ms(one_by_one), "together": _cpu_ms(together)}

    return {str(candidates): savings(candidates) for candidates in BATCHED}


def _cpu_ms(call: Callable[[], None], repeats: int = 15) -> float:
    spent = []
    for _ in range(repeats):
        before = time.thread_time()
        call()
        spent.append(time.thread_time() - before)
    return statistics.median(spent) * 1e3


def body_of(data: dict[str, Any]) -> list[str]:
    """The report."""
    blocks = data["blocks"]
    rows = []
    for name, seen in blocks.items():
        ratios = [one["server_cpu_ms"] / of["server_cpu_ms"] for one, of in zip(seen, blocks[ONE], strict=True)]
        keys = ("server_cpu_ms", "client_cpu_ms", "requests_per_second", "p50_ms", "p99_ms")
        medians = [f"{statistics.median(one[key] for one in seen):.2f}" for key in keys]
        rows.append([name, *medians, _spread(ratios)])
    head = ["service", "CPU ms", "client's CPU ms", "requests/s", "p50 ms", "p99 ms", "CPU, times one worker"]
    few, many = (data["growth_cpu_ms"][str(candidates)] for candidates in GROWTH)
    growth = [b / a * GROWTH[0] / GROWTH[1] for a, b in zip(few, many, strict=True)]
    memory = data["resident_mib"]
    batches = []
    for candidates, one in data["batches_cpu_ms"].items():
        alone, together = one["one_by_one"], one["together"]
        batches.append([candidates, f"{alone:.2f}", f"{together:.2f}", f"{alone / together:.2f}"])
    return [
        *([data["note"], ""] if data.get("note") else []),
        f"{CANDIDATES} candidates, {CONCURRENCY} requests at a time. A request's CPU time on the service's side and on "
        "the client's, medians over turns, the ratio as median (least to most). The client shares the cores.",
        "",
        *report.table(head, rows),
        "",
        f"From {GROWTH[0]} to {GROWTH[1]} candidates the CPU time for each candidate changes by the factor "
        f"{_spread(growth)}.",
        "",
        f"Resident memory of one worker: {memory[0]:.0f} MiB, then after each of {len(memory) - 1} blocks of requests "
        f"with {MOST_CANDIDATES} candidates, {CONCURRENCY} at a time: {', '.join(f'{one:.0f}' for one in memory[1:])}.",
        "",
        f"Scoring {CONCURRENCY} requests, features included, without a service around it: one by one, and with all "
        "their candidates computed at once.",
        "",
        *report.table(["candidates of a request", "one by one, CPU ms", "at once, CPU ms", "ratio"], batches),
    ]


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Measures, prints and writes the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--requests", type=int, default=150, help="requests of a block")
    parser.add_argument("--note", default="", help="said in the result: what else the machine was doing")
    options = parser.parse_args()
    try:
        data = measure(Console(stderr=True), options.turns, options.requests)
    except KeyboardInterrupt:
        sys.exit("stopped; nothing is written and no service is left running")
    except RuntimeError as error:
        sys.exit(f"no result: {error}")
    data["note"] = options.note
    body = body_of(data)
    print("\n".join(body))
    print(report.write("workers", "Threads and workers", body, data, "python -m benchmarks.workers"))


if __name__ == "__main__":
    run_benchmark(main)
