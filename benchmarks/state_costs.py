"""CPU time of a request by id beside the same features inline, for both stores and both wires.

In: a folder with the model, and the stores' URLs. Out: CPU seconds a request of both ways of each pair. A pair is two
short blocks of the same users, one after the other, in an order that turns round from pair to pair, so that what else
the machine does falls on both.
"""

import asyncio
import sys
from pathlib import Path

import httpx

from benchmarks.closed_loop import closed_loop
from benchmarks.serving_processes import Server
from benchmarks.state_services import NAME, USERS, messages, put_users, service
from service.metrics.state_metrics import LOOKUP_RESULTS

_PATIENCE_SECONDS = 120.0
_WARM_PAIRS = 8
WIRES = {"/v1/rank": False, "/v2": True}

# CPU seconds a request by id, and inline, of each pair.
Pairs = tuple[list[float], list[float]]


def measure_costs(folder: Path, urls: dict[str, str], pairs: int) -> dict[str, dict[str, Pairs]]:
    """The pairs by store and wire. Raises RuntimeError where a look-up found no user."""
    costs: dict[str, dict[str, Pairs]] = {}
    for store, url in urls.items():
        put_users(url)
        # A time that only a machine that stands still exceeds.
        with service(folder, f"cost-{store}", url, "--state-timeout-ms", "1000") as server:
            costs[store] = {wire: _pairs(server, pairs, is_v2=is_v2) for wire, is_v2 in WIRES.items()}
            results = {result: counted(server, result) for result in LOOKUP_RESULTS}
            if results["hit"] != len(WIRES) * (pairs + _WARM_PAIRS) * USERS or sum(results.values()) > results["hit"]:
                raise RuntimeError(f"look-ups that found no user: {results}")
        print(f"{store}: {pairs} pairs", file=sys.stderr)
    return costs


def _pairs(server: Server, pairs: int, *, is_v2: bool) -> Pairs:
    ways = [messages(server.url, by_id=by_id, is_v2=is_v2) for by_id in (True, False)]
    seconds: Pairs = ([], [])
    for pair in range(-_WARM_PAIRS, pairs):
        for way in (0, 1) if pair % 2 else (1, 0):
            before = server.cpu()
            answered = asyncio.run(closed_loop(server.url, ways[way], _PATIENCE_SECONDS, 1, most=USERS))
            if len(answered.latencies) != USERS:
                raise RuntimeError(f"{USERS - len(answered.latencies)} requests failed: {answered.said}")
            if pair >= 0:
                seconds[way].append(server.cpu().seconds_since(before) / USERS)
    return seconds


def counted(server: Server, result: str) -> float:
    """Look-ups of a result."""
    sample = f'ranking_state_lookups_total{{model="{NAME}",result="{result}"}}'
    for line in httpx.get(f"{server.url}/metrics", trust_env=False).text.splitlines():
        if line.startswith(sample):
            return float(line.rpartition(" ")[2])
    return 0.0
