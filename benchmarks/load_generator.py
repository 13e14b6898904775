"""`python -m benchmarks.load_generator`: sends requests to a service on loopback, in a process of its own.

In, by lines of standard input: a `Block` of load as JSON. Out, a line each: a `Load` as JSON, or {"error": reason}. A
block is bounded in requests and in seconds. What is late then is not sent. The clients are those of
benchmarks/closed_loop.py. Their own CPU time stands beside what they measured.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import uvloop

from benchmarks.closed_loop import closed_loop
from deploy.open_loop import message

ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Block:
    """`requests` POSTs to a port and path of 127.0.0.1, `concurrency` at a time, none begun after `seconds`. `bodies`
    is a file with a JSON list of bodies, sent in turn."""

    port: int
    path: str
    bodies: str
    requests: int
    concurrency: int
    seconds: float


@dataclass(frozen=True)
class Load:
    """Seconds that each answered request took, and seconds and this client's CPU seconds of the whole block."""

    latencies: list[float]
    seconds: float
    client_cpu_seconds: float


def main() -> None:
    """Serve blocks of load until standard input ends."""
    for line in sys.stdin:
        try:
            answer = asdict(uvloop.run(_load(Block(**json.loads(line)))))
        except (OSError, EOFError, RuntimeError, TimeoutError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


async def _load(block: Block) -> Load:
    messages = _messages(block.port, block.path, block.bodies)
    cpu = time.process_time()
    answered = await closed_loop(
        f"http://127.0.0.1:{block.port}",
        messages,
        block.seconds,
        block.concurrency,
        most=block.requests,
        timeout=ANSWER_SECONDS,
    )
    for status, said in answered.said.items():
        raise RuntimeError(f"a request was answered with {status}: {said}")
    return Load(answered.latencies, answered.seconds, time.process_time() - cpu)


@cache
def _messages(port: int, path: str, bodies: str) -> list[bytes]:
    encoded = [body.encode() for body in json.loads(Path(bodies).read_text(encoding="utf-8"))]
    return [message(f"http://localhost:{port}", path, body) for body in encoded]


if __name__ == "__main__":
    main()
