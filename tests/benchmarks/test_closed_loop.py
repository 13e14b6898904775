"""A closed loop against a small server made for it: every answer of every client is counted."""

import asyncio

from benchmarks.closed_loop import Answered, closed_loop
from deploy.open_loop import message

REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def test_a_closed_loop_counts_every_answer_of_all_its_clients() -> None:
    async def main() -> tuple[Answered, Answered, int]:
        served = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal served
            try:
                while True:
                    await reader.readuntil(b"{}")
                    await asyncio.sleep(0.01)
                    served += 1
                    writer.write(REPLY)
            except asyncio.IncompleteReadError:
                writer.close()
                await writer.wait_closed()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            asked = [message(url, "/v1/rank", b"{}")]
            timed = await closed_loop(url, asked, 0.5, clients=5)
            return timed, await closed_loop(url, asked, 60, clients=3, most=7), served

    timed, counted, served = asyncio.run(main())
    assert len(timed.latencies) + len(counted.latencies) == served
    assert len(timed.latencies) > 5
    assert timed.seconds >= 0.5
    assert len(counted.latencies) == 7
    # The server takes a hundredth of a second for each.
    assert 0.01 <= min(timed.latencies) <= max(timed.latencies) <= timed.seconds
    assert timed.rate == len(timed.latencies) / timed.seconds
