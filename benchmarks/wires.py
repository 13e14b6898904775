"""`make bench-wires`: the same scoring request on both wires, CPU time of the server.

    python -m benchmarks.wires [--turns 11] [--requests 300]

One worker on one core, its client on another, on loopback, one request at a time. Every turn measures each wire once:
columns of POST /v1/rank, and tensors of bytes of the Open Inference Protocol, whose answer is bytes too.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.command import run_benchmark
from benchmarks.events import Way
from benchmarks.ratio import Ratio, in_turns
from benchmarks.reference_feed import NETWORK, SCHEMA, columnar_request
from benchmarks.serving_processes import SERVER_CORES, free_port, serve
from deploy.open_loop import message
from tests.artifacts import publish_artifact

SIZES = (10, 100, 500)
NAME = "reference"
WIRES = {"columns": "/v1/rank: columns", "bytes": "/v2: tensors of bytes"}


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--requests", type=int, default=300, help="of each wire, in a turn")
    options = parser.parse_args()
    seconds: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        publish_artifact(folder, NAME, schema=SCHEMA, network=NETWORK, request=columnar_request(2, 0))
        port = free_port()
        flags = ["--models", str(folder), "--port", str(port), "--threads", "1"]
        command = [sys.executable, "-m", "service", *flags]
        server = stack.enter_context(serve(command, "/readyz", port, folder / "service.log", SERVER_CORES))
        for size in SIZES:
            requests = [columnar_request(size, seed) for seed in range(8)]
            ways = {
                wire: Way(server, [sent[number % 8] for number in range(options.requests)])
                for wire, sent in messages(server.url, requests).items()
            }
            spent = in_turns({wire: way.cpu_seconds for wire, way in ways.items()}, options.turns)
            seconds[str(size)] = {wire: [one / options.requests for one in of_wire] for wire, of_wire in spent.items()}
    rows = []
    for candidates, spent in seconds.items():
        medians = [f"{1e6 * statistics.median(spent[wire]):.0f} ({1e6 * min(spent[wire]):.0f})" for wire in WIRES]
        rows.append([candidates, *medians, str(Ratio.of(spent["bytes"], spent["columns"]))])
    body = [
        f"CPU microseconds of the server for a request: median of {options.turns} turns, and the least. The last "
        "column is the ratio of the second wire to the first within a turn, with its 95 % interval.",
        "",
        *report.table(["N", *WIRES.values(), "ratio"], rows),
    ]
    path = report.write("wires", "The same request on both wires", body, {"seconds": seconds}, "make bench-wires")
    print(path.read_text(encoding="utf-8"))


def messages(url: str, requests: Sequence[dict[str, Any]]) -> dict[str, list[bytes]]:
    """The requests on each wire."""
    return {
        "columns": [message(url, "/v1/rank", json.dumps(one).encode()) for one in requests],
        "bytes": [tensors_message(url, one) for one in requests],
    }


def tensors_message(url: str, request: dict[str, Any]) -> bytes:
    """The request in the protocol's binary tensor data extension, which asks for bytes. What is no feature is an id."""
    columns = {name: [value] for name, value in request["user"].items()} | request["candidates"]["features"]
    numbers = {feature.name for feature in SCHEMA.features if not feature.has_ids}
    lists = {feature.name for feature in SCHEMA.features if feature.is_list}
    tensors: dict[str, Any] = {}
    for name, values in columns.items():
        if name in lists:
            tensors[f"{name}.values"] = np.concatenate(values).astype("<i8")
            tensors[f"{name}.lengths"] = np.array(list(map(len, values)), "<i8")
        else:
            tensors[name] = np.array(values, "<f4" if name in numbers else "<i8")
    inputs = [
        {
            "name": name,
            "shape": [len(values)],
            "datatype": "FP32" if values.dtype.kind == "f" else "INT64",
            "parameters": {"binary_data_size": values.nbytes},
        }
        for name, values in tensors.items()
    ]
    text = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    body = b"".join([text, *(values.tobytes() for values in tensors.values())])
    header = {"Inference_Header_Content_Length": str(len(text))}
    return message(url, f"/v2/models/{NAME}/infer", body, **header)


if __name__ == "__main__":
    run_benchmark(main)
