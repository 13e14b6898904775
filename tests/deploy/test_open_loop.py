"""Open-loop load against small servers made for it: nothing that waits is forgotten, every status is counted."""

import asyncio
import time
from collections.abc import Callable

import numpy as np
import pytest

from deploy.open_loop import FAILED, TIMED_OUT, Outcome, message, offer, poisson


def run(
    answer: Callable[[int], bytes | None], due: list[float], *, timeout: float = 30.0, stall: float = 0.0
) -> Outcome:
    """Offers requests to a server that gives the n-th of them `answer(n)` (None: never) and stalls at the first."""

    async def main() -> Outcome:
        served = 0
        opened = asyncio.get_running_loop().time()
        handlers: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal served
            task = asyncio.current_task()
            assert task is not None
            handlers.add(task)
            try:
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                    number, served = served, served + 1
                    await asyncio.sleep(opened + stall - asyncio.get_running_loop().time())
                    content = answer(number)
                    if content is None:
                        await reader.read()  # until the client gives up
                        return
                    writer.write(content)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()
                await asyncio.wait({asyncio.ensure_future(writer.wait_closed())})

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            outcome = await offer(url, [message(url, "/v1/rank", b"{}")], np.array(due), timeout=timeout)
            await asyncio.wait(handlers)
            return outcome

    return asyncio.run(main())


def reply(status: int, body: bytes = b"ok", *, close: bool = False) -> bytes:
    connection = b"Connection: close\r\n" if close else b""
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), connection, body)


def test_a_stall_is_charged_for_all_that_were_due_meanwhile() -> None:
    """A closed loop of one client would have seen one slow answer. Ten requests were due while the server stood."""
    outcome = run(lambda _: reply(200), [0.05 * n for n in range(10)], stall=0.6)
    assert (outcome.status_R == 200).all()
    # Due at .05 n, answered when the stall ends or later: never in less than what was left of it.
    assert (outcome.seconds_R >= 0.6 - outcome.due_R - 0.02).all()  # clocks of two starts, apart by less than this


def test_every_end_has_its_status() -> None:
    answers = {
        0: reply(200),
        1: reply(429, b""),
        2: reply(503, close=True),
        3: b"nonsense\r\n\r\n",
        4: None,
        5: reply(200),
    }
    outcome = run(lambda number: answers[number], [0.1 * n for n in range(6)], timeout=1.5)
    assert outcome.status_R.tolist() == [200, 429, 503, FAILED, TIMED_OUT, 200]
    assert len(outcome.of(200)) == 2


def test_nobody_there_is_a_failure_of_every_request() -> None:
    url = "http://127.0.0.1:9"  # the discard port, on which nothing listens
    outcome = asyncio.run(offer(url, [message(url, "/", b"")], np.zeros(3)))
    assert outcome.status_R.tolist() == [FAILED] * 3


def test_requests_leave_when_they_are_due() -> None:
    started = time.perf_counter()
    outcome = run(lambda _: reply(200), [0.0, 0.5])
    assert time.perf_counter() - started >= 0.5
    assert (outcome.seconds_R > 0).all()


@pytest.mark.parametrize("rate", [50.0, 2000.0])
def test_arrivals_are_a_poisson_process(rate: float) -> None:
    times = poisson(rate, 20.0, seed=3)
    assert (np.diff(times) >= 0).all()
    assert times[-1] < 20
    # The count within four standard errors. Gaps of an exponential have their mean for a standard deviation.
    assert len(times) == pytest.approx(20 * rate, abs=4 * np.sqrt(20 * rate))
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=4 * np.sqrt(2 / len(gaps)))
    assert not np.array_equal(times[:10], poisson(rate, 20.0, seed=4)[:10])
