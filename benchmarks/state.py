"""`make bench-state`: what users by id cost a request, and what becomes of requests where the store fails.

    python -m benchmarks.state [--pairs 60] [--events 1000] [--late 20]

Services on one core, their clients and Redis on another, on loopback. The user's 18 features come inline, or from the
store by a key. SQLite is in the service's own process. CPU time of a Redis server is not the service's. Then: events
that are in their user's next request a second later, in every worker of a service and in another service on the same
Redis. Then restarts of Redis under load, and a Redis that answers half a second late.
"""

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import httpx

from benchmarks import report
from benchmarks.closed_loop import Answered
from benchmarks.command import run_benchmark
from benchmarks.ratio import mean_and_half_width
from benchmarks.state_costs import Pairs, measure_costs
from benchmarks.state_faults import LateRedis, measure_late_redis, measure_restarts
from benchmarks.state_services import CANDIDATES, HISTORY, ITEM, KEY, RedisProcess, publish, service

_EVENT_SECONDS = 1.0
_EVENT_GAP_SECONDS = 0.05
_WORKERS = 2
_ASKED_TIMES = 4


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=60, help="of blocks by id and inline, for each store and wire")
    parser.add_argument("--events", type=int, default=1_000)
    parser.add_argument("--late", type=int, default=20, help="times that Redis turns late")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = RedisProcess(folder)
        stack.callback(redis.kill)
        urls = {"SQLite": f"sqlite:///{folder}/state.db", "Redis": redis.url}
        publish(folder)
        costs = measure_costs(folder, urls, options.pairs)
        freshness = asyncio.run(_freshness(folder, urls, options.events))
        late = measure_late_redis(folder, redis, options.late)
        usual, restarted = measure_restarts(folder, redis)
    body = [
        f"CPU milliseconds of the service a request of {CANDIDATES} candidates: mean of {options.pairs} pairs of "
        "blocks, and what a request by id takes more than the same features inline, with its 95 % interval.",
        "",
        *report.table(["store", "wire", "inline", "more by id", "95 %", "median"], _cost_rows(costs)),
        "",
        f"A user's event is in {_ASKED_TIMES} requests a second after the event was accepted, each on a connection of "
        "its own:",
        "",
        *report.table(["service that is asked", "events", "found"], [[n, f"{o}", f"{f}"] for n, o, f in freshness]),
        "",
        *_fault_lines(usual, restarted, late),
    ]
    raw = {
        "cpu_seconds": costs,
        "freshness": freshness,
        "late": [asdict(one) for one in late],
        "restarts": {"usual": usual.rate, "restarted": restarted.rate, "answers": len(restarted.latencies)},
    }
    print(report.write("state", "Users by id", body, raw, "make bench-state").read_text(encoding="utf-8"))


def _cost_rows(costs: dict[str, dict[str, Pairs]]) -> list[list[str]]:
    rows = []
    for store, wires in costs.items():
        for wire, (by_id, inline) in wires.items():
            more = [1000 * (one - other) for one, other in zip(by_id, inline, strict=True)]
            mean, half = mean_and_half_width(more)
            middle = statistics.median(more)
            inline_ms = 1000 * statistics.fmean(inline)
            rows.append([store, wire, f"{inline_ms:.3f}", f"{mean:+.3f}", f"± {half:.3f}", f"{middle:+.3f}"])
    return rows


def _fault_lines(usual: Answered, restarted: Answered, late: Sequence[LateRedis]) -> list[str]:
    before, after = ([getattr(one, name) / one.usual for one in late] for name in ("before", "after"))
    refused = ", ".join(map(str, restarted.said)) or "none"
    rows = [
        ["Redis as usual", f"{usual.rate:,.0f}", "none" if not usual.said else str(usual.said)],
        ["20 restarts of Redis", f"{restarted.rate:,.0f}", refused],
        ["Redis as usual, behind a proxy", f"{statistics.fmean(one.usual for one in late):,.0f}", ""],
        ["its answers 500 ms late, until the breaker opens", f"{statistics.fmean(o.before for o in late):,.0f}", ""],
        ["the second after that", f"{statistics.fmean(o.after for o in late):,.0f}", ""],
    ]
    seconds = sorted(one.seconds for one in late)
    return [
        "Requests by id while Redis fails, closed loop of sixteen clients:",
        "",
        *report.table(["", "answers a second", "refused with"], rows),
        "",
        f"Redis turned late {len(late)} times. The breaker opened after a median of "
        f"{1000 * statistics.median(seconds):.0f} ms, and {1000 * seconds[-1]:.0f} ms at most. Until then the rate "
        f"was {statistics.fmean(before):.3f} of the usual, and {statistics.fmean(after):.3f} after that. "
        f"{sum(one.failed for one in late)} requests were not answered.",
    ]


async def _freshness(folder: Path, urls: dict[str, str], events: int) -> list[tuple[str, int, int]]:
    """Events that are in requests a second after they were accepted: asked of, sent, found."""
    found: list[tuple[str, int, int]] = []
    with ExitStack() as stack:
        flags = ("--state-timeout-ms", "1000", "--queue-seconds", "30")
        embedded = stack.enter_context(service(folder, "embedded", urls["SQLite"], *flags, workers=_WORKERS))
        one = stack.enter_context(service(folder, "one", urls["Redis"], *flags, workers=_WORKERS))
        other = stack.enter_context(service(folder, "other", urls["Redis"], *flags))
        for name, sent, asked in (
            ("the same, two workers, SQLite", embedded, embedded),
            ("the same, two workers, Redis", one, one),
            ("another one, Redis", one, other),
        ):
            limits = httpx.Limits(max_keepalive_connections=0)  # so that either worker may take it
            async with httpx.AsyncClient(timeout=30, trust_env=False, limits=limits) as client:
                results = await asyncio.gather(
                    *(_is_fresh(client, sent.url, asked.url, f"{name}-{n}", n) for n in range(events))
                )
            found.append((name, events, sum(results)))
    return found


async def _is_fresh(client: httpx.AsyncClient, sent: str, asked: str, user: str, number: int) -> bool:
    await asyncio.sleep(number * _EVENT_GAP_SECONDS)
    event = {"request_id": "r", "type": "click", "id": "v", "event_id": user, "user": user, ITEM: 7}
    accepted = await client.post(f"{sent}/v1/events", json={"events": [event]})
    accepted.raise_for_status()
    await asyncio.sleep(_EVENT_SECONDS)
    return all([await _is_found(client, asked, user) for _ in range(_ASKED_TIMES)])


async def _is_found(client: httpx.AsyncClient, asked: str, user: str) -> bool:
    body = {"user": {KEY: user}, "candidates": {"id": ["a"], "features": {ITEM: [1]}}, "explain": True}
    answer = await client.post(f"{asked}/v1/rank", json=body)
    answer.raise_for_status()
    return bool(answer.json()["explain"]["inputs"]["state"].get(HISTORY) == 1)


if __name__ == "__main__":
    run_benchmark(main)
