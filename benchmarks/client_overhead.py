"""`make bench-clients`: CPU time of a ranking in each client beside a bare call of httpx or fetch.

    python -m benchmarks.client_overhead [--turns 15] [--requests 100]

One service on loopback, 100 candidates. The Python clients are in this process, that of TypeScript is in one of Node. A
bare call encodes the request and decodes the answer. Every turn measures all ways once.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE

import httpx

from benchmarks import report
from benchmarks.command import run_benchmark
from benchmarks.ratio import in_turns
from benchmarks.reference_feed import NETWORK, SCHEMA, columnar_request
from benchmarks.serving_processes import SERVER_CORES, free_port, serve
from feedrank import AsyncClient, Client
from tests.artifacts import publish_artifact

CANDIDATES = 100
CLIENT_JS = Path(__file__).parents[1] / "clients/typescript/feedrank.js"
_LONG = 60.0


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--requests", type=int, default=100, help="of each way, in a turn")
    options = parser.parse_args()
    request = columnar_request(CANDIDATES, 0)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        publish_artifact(folder, "reference", schema=SCHEMA, network=NETWORK, request=columnar_request(2, 0))
        port = free_port()
        command = [sys.executable, "-m", "service", "--models", str(folder), "--port", str(port), "--threads", "1"]
        server = stack.enter_context(serve(command, "/readyz", port, folder / "service.log", SERVER_CORES))
        url = f"{server.url}/v1/rank"
        bare = stack.enter_context(httpx.Client(timeout=_LONG, trust_env=False))
        client = stack.enter_context(Client(server.url, timeout=_LONG))
        runner = stack.enter_context(asyncio.Runner())
        bare_async, async_client = httpx.AsyncClient(timeout=_LONG, trust_env=False), AsyncClient(server.url)

        (folder / "request.json").write_text(json.dumps(request))
        arguments = [str(CLIENT_JS), server.url, str(folder / "request.json"), str(options.requests)]
        command = ["node", str(Path(__file__).with_suffix(".mjs")), *arguments]
        node = stack.enter_context(subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True))

        async def call_bare() -> None:
            for _ in range(options.requests):
                (await bare_async.post(url, json=request)).json()

        async def call() -> None:
            for _ in range(options.requests):
                await async_client.rank(request, timeout=_LONG)

        def sync_bare() -> None:
            for _ in range(options.requests):
                bare.post(url, json=request).json()

        def sync() -> None:
            for _ in range(options.requests):
                client.rank(request)

        def spent(way: Callable[[], None]) -> float:
            start = time.process_time()
            way()
            return (time.process_time() - start) / int(options.requests)

        def spent_by_node(way: str) -> float:
            assert node.stdin is not None
            assert node.stdout is not None
            print(way, file=node.stdin, flush=True)
            return float(node.stdout.readline())

        ways: dict[str, Callable[[], float]] = {
            "httpx.Client": lambda: spent(sync_bare),
            "Client": lambda: spent(sync),
            "httpx.AsyncClient": lambda: spent(lambda: runner.run(call_bare())),
            "AsyncClient": lambda: spent(lambda: runner.run(call())),
            "fetch": lambda: spent_by_node("bare"),
            "Client of TypeScript": lambda: spent_by_node("client"),
        }
        seconds = in_turns(ways, options.turns)
        runner.run(async_client.aclose())
        runner.run(bare_async.aclose())
    rows = []
    for bare_way, way in list(zip(seconds, list(seconds)[1:], strict=False))[::2]:
        more = [1e3 * (own - other) for own, other in zip(seconds[way], seconds[bare_way], strict=True)]
        rows.append(
            [
                f"{way}, {bare_way}",
                _shown(seconds[bare_way]),
                _shown(seconds[way]),
                f"{sorted(more)[len(more) // 2]:.3f}",
            ]
        )
    body = [
        f"CPU milliseconds of the client's process for a request of {CANDIDATES} candidates: median of {options.turns} "
        "turns, and the least. The last column is the median within a turn of what the client adds.",
        "",
        *report.table(["client, bare call", "bare call", "client", "more"], rows),
    ]
    raw = {"seconds": seconds}
    path = report.write("client_overhead", "Clients beside bare calls", body, raw, "make bench-clients")
    print(path.read_text(encoding="utf-8"))


def _shown(seconds: list[float]) -> str:
    return f"{1e3 * sorted(seconds)[len(seconds) // 2]:.3f} ({1e3 * min(seconds):.3f})"


if __name__ == "__main__":
    run_benchmark(main)
