"""CPU time that policies cost requests of a service, with and without a policy of theirs.

In: turns and requests. Out: CPU milliseconds of the service a request, by turn and way. Two services of one core serve
the reference feed, one of them with a policies.yaml. Every turn asks each way once, in another order than the one
before, from another core.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from benchmarks.closed_loop import closed_loop
from benchmarks.ratio import in_turns
from benchmarks.reference_feed import NETWORK, SCHEMA, columnar_request
from benchmarks.serving_processes import SERVER_CORES, Server, free_port, serve
from deploy.open_loop import message
from tests.artifacts import publish_artifact

CANDIDATES = 500
POLICY = "all_stages"
WITHOUT, UNNAMED, NAMED = "no policies.yaml", "policies.yaml, none named", "policies.yaml, all stages"
WAYS = (WITHOUT, UNNAMED, NAMED)
_REQUESTS = 8
_PATIENCE_SECONDS = 120.0
_POLICIES = {
    POLICY: {
        "filter": ["click > 0.01"],
        "dedup": ["candidate_0"],
        "boost": [{"when": "click < 0.5", "multiply": 1.2}],
        "decay": {"per": "candidate_1", "factor": 0.8, "floor": 0.3},
        "select": {
            "cap": {"per": "candidate_1", "count": 2, "within": 10, "else": "relax"},
            "mmr": {"lambda": 0.7, "head": 50, "by": "candidate_0"},
            "explore": {"temperature": 0.5, "head": 20, "share": 1.0},
        },
    }
}


def costs(turns: int, requests: int) -> dict[str, list[float]]:
    """CPU milliseconds a request, by way and turn. Raises RuntimeError where a request fails."""
    with TemporaryDirectory(prefix="feedrank-bench-") as name, ExitStack() as stack:
        plain, placed = (stack.enter_context(_service(Path(name), has_policies=has)) for has in (False, True))
        asked = {WITHOUT: (plain, None), UNNAMED: (placed, None), NAMED: (placed, POLICY)}
        ways = {way: partial(_milliseconds, server, policy, requests) for way, (server, policy) in asked.items()}
        return in_turns(ways, turns)


@contextmanager
def _service(folder: Path, *, has_policies: bool) -> Iterator[Server]:
    models, port = folder / f"models-{has_policies}", free_port()
    request = columnar_request(CANDIDATES, 0)
    published = publish_artifact(models, "reference", schema=SCHEMA, network=NETWORK, request=request)
    if has_policies:
        (published.parent / "policies.yaml").write_text(yaml.safe_dump(_POLICIES))
    command = [sys.executable, "-m", "service", "--models", str(models), "--port", str(port), "--threads", "1"]
    with serve(command, "/readyz", port, folder / f"{has_policies}.log", SERVER_CORES) as server:
        yield server


def _milliseconds(server: Server, policy: str | None, requests: int) -> float:
    more = {} if policy is None else {"policy": policy}
    asked = [{**columnar_request(CANDIDATES, seed), **more} for seed in range(_REQUESTS)]
    bodies = [message(server.url, "/v1/rank", json.dumps(one).encode()) for one in asked]
    before = server.cpu()
    answered = asyncio.run(closed_loop(server.url, bodies, _PATIENCE_SECONDS, 1, most=requests))
    if len(answered.latencies) != requests:
        raise RuntimeError(f"{requests - len(answered.latencies)} requests failed: {answered.said}")
    return 1000 * server.cpu().seconds_since(before) / requests
