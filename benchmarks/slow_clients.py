"""Hostile clients: many that dribble their requests, and one that sends far too much.

    python -m benchmarks.slow_clients URL

Until it is killed: CLIENTS connections send half of a request at once, then PART_BYTES every PART_SECONDS, and are
replaced when they are cut off. Once a second another one sends HUGE_BYTES and reads its answer when all is sent or no
more is taken. A process of its own, so that it does not delay the one that measures.
"""

import asyncio
import json
import sys
from contextlib import suppress
from urllib.parse import urlsplit

from benchmarks.reference_feed import columnar_request
from deploy.open_loop import message

CLIENTS = 200
PART_BYTES = 8
PART_SECONDS = 0.5
HUGE_BYTES = 50 * 2**20
# Clients come one after the other, as they would over a day, not all at one moment.
_START_SECONDS = 2.0
_CHUNK = bytes(2**20)


async def main(url: str) -> None:
    """Run them all. Never returns."""
    request = message(url, "/v1/rank", json.dumps(columnar_request(100, 0)).encode())
    dribbling = [_dribble(url, request, _START_SECONDS * number / CLIENTS) for number in range(CLIENTS)]
    await asyncio.gather(_send_huge(url), *dribbling)


async def _dribble(url: str, request: bytes, wait: float) -> None:
    await asyncio.sleep(wait)
    while True:
        with suppress(OSError):
            reader, writer = await _connected(url)
            sent = len(request) // 2
            writer.write(request[:sent])
            while not reader.at_eof() and sent + PART_BYTES < len(request):
                await asyncio.sleep(PART_SECONDS)
                writer.write(request[sent : sent + PART_BYTES])
                sent += PART_BYTES
                await writer.drain()
            writer.close()


async def _send_huge(url: str) -> None:
    head = message(url, "/v1/rank", b"").replace(b"Content-Length: 0", b"Content-Length: %d" % HUGE_BYTES)
    while True:
        with suppress(OSError, TimeoutError):
            reader, writer = await _connected(url)
            async with asyncio.timeout(5.0):
                writer.write(head)
                for _ in range(HUGE_BYTES // len(_CHUNK)):
                    writer.write(_CHUNK)
                    await writer.drain()
                await reader.read(4096)
            writer.close()
        await asyncio.sleep(1.0)


async def _connected(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(url)
    return await asyncio.open_connection(address.hostname, address.port)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
