"""`make bench-batch`: the same requests one by one and as batches, CPU time of the server.

    python -m benchmarks.batch [--turns 7] [--batches 8]

One worker on one core, its client on another, on loopback, one message at a time. Every turn measures both ways once:
each request of a batch as a POST /v1/rank of its own, and all of them as one POST /v1/rank:batch. TorchScript answers,
as a compiled package takes one user and goes through a batch request by request.
"""

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks import report
from benchmarks.command import run_benchmark
from benchmarks.events import Way
from benchmarks.ratio import Ratio, in_turns
from benchmarks.reference_feed import NETWORK, SCHEMA, columnar_request
from benchmarks.serving_processes import SERVER_CORES, free_port, serve
from deploy.open_loop import message
from tests.artifacts import publish_artifact

# Users of a batch, and candidates of each.
SIZES = ((10, 10), (10, 30), (10, 50), (10, 100))
NAME = "reference"
WAYS = {"alone": "/v1/rank, one by one", "batch": "/v1/rank:batch"}
_DIFFERENT = 8


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--batches", type=int, default=8, help="of each way, in a turn")
    options = parser.parse_args()
    seconds: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        publish_artifact(folder, NAME, schema=SCHEMA, network=NETWORK, request=columnar_request(2, 0))
        port = free_port()
        flags = ["--models", str(folder), "--port", str(port), "--threads", "1"]
        command = [sys.executable, "-m", "service", *flags]
        server = stack.enter_context(serve(command, "/readyz", port, folder / "service.log", SERVER_CORES))
        for users, size in SIZES:
            batches = [
                [columnar_request(size, number * users + user) for user in range(users)] for number in range(_DIFFERENT)
            ]
            alone = [[message(server.url, "/v1/rank", json.dumps(one).encode()) for one in batch] for batch in batches]
            together = [
                message(server.url, "/v1/rank:batch", json.dumps({"requests": one}).encode()) for one in batches
            ]
            turn_of = [number % _DIFFERENT for number in range(options.batches)]
            ways = {
                "alone": Way(server, [one for number in turn_of for one in alone[number]]),
                "batch": Way(server, [together[number] for number in turn_of]),
            }
            spent = in_turns({name: way.cpu_seconds for name, way in ways.items()}, options.turns)
            seconds[f"{users} x {size}"] = {
                name: [one / options.batches for one in of_way] for name, of_way in spent.items()
            }
    rows = []
    for name, spent in seconds.items():
        medians = [f"{1e3 * statistics.median(spent[way]):.2f} ({1e3 * min(spent[way]):.2f})" for way in WAYS]
        rows.append([name, *medians, str(Ratio.of(spent["alone"], spent["batch"]))])
    body = [
        f"CPU milliseconds of the server for all requests of a batch: median of {options.turns} turns, and the least. "
        "The last column is how many times less the batch takes, within a turn, with its 95 % interval.",
        "",
        *report.table(["users x candidates", *WAYS.values(), "ratio"], rows),
    ]
    path = report.write("batch", "Requests of several users together", body, {"seconds": seconds}, "make bench-batch")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_benchmark(main)
