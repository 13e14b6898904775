"""`python -m benchmarks.load_generator`: sends requests to a service on loopback, in a process of its own.

In, by lines of standard input: a `Block` of load as JSON. Out, a line each: a `Load` as JSON, or {"error": reason}. A
block is bounded in requests and in seconds; what is late then is not sent. One connection for each request in flight,
kept alive; the client's own CPU time stands beside what it measured.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import uvloop

ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Block:
    """`requests` POSTs to a port and path of 127.0.0.1, `concurrency` at a time, none begun after `seconds`; `bodies`
    is a file with a JSON list of bodies, sent in turn."""

    port: int
    path: str
    bodies: str
    requests: int
    concurrency: int
    seconds: float


@dataclass(frozen=True)
class Load:
    """Seconds that each answered request took; seconds and this client's CPU seconds of the whole block."""

    latencies: list[float]
    seconds: float
    client_cpu_seconds: float


def main() -> None:
    """Serves blocks of load until standard input ends."""
    for line in sys.stdin:
        try:
            answer = asdict(uvloop.run(_load(Block(**json.loads(line)))))
        except (OSError, EOFError, RuntimeError, TimeoutError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


async def _load(block: Block) -> Load:
    messages = _messages(block.path, block.bodies)
    latencies: list[float] = []
    numbers = iter(range(block.requests))
    connections = [await asyncio.open_connection("127.0.0.1", block.port) for _ in range(block.concurrency)]
    started, cpu = time.perf_counter(), time.process_time()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in numbers:
            sent = time.perf_counter()
            if sent - started > block.seconds:
                break
            writer.write(messages[number % len(messages)])
            async with asyncio.timeout(ANSWER_SECONDS):
                await _read_answer(reader)
            latencies.append(time.perf_counter() - sent)

    try:
        await asyncio.gather(*(client(reader, writer) for reader, writer in connections))
    finally:
        for _, writer in connections:
            writer.close()
    return Load(latencies, time.perf_counter() - started, time.process_time() - cpu)


async def _read_answer(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(f"a request was answered with {head.splitlines()[0].decode()}")
    await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))


@cache
def _messages(path: str, bodies: str) -> list[bytes]:
    encoded = [body.encode() for body in json.loads(Path(bodies).read_text(encoding="utf-8"))]
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    return [f"{head}{len(body)}\r\n\r\n".encode() + body for body in encoded]


if __name__ == "__main__":
    main()
