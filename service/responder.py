"""A scoring request on the event loop: read under limits, admitted, answered in a scoring thread, sent or refused.

In: an ASGI request, and the function from its body to an answer (service/pipeline.py, or that of /v2). Out: the
answer, or a problem. What waits until an answer has left is done then.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.base.errors import Fault, Problem, value_or_kind
from service.base.record import RequestRecord
from service.http.admission import Admission, Ticket, busy
from service.http.body import read_body_in_time
from service.http.content_encoding import encoding_of, size_of, unpacked
from service.http.middleware import draining, header, record_of, send_disconnected, send_problem
from service.metrics.metrics import Metrics
from service.pipeline import TIMEOUT_HEADER, Answer, check_deadline, deadline_passed
from service.process.scoring_threads import ScoringThreads
from service.rank.answer import Reply


@dataclass(frozen=True, slots=True)
class Responder:
    """The way of scoring requests through one process. `is_draining` says that no request is taken any more."""

    admission: Admission
    threads: ScoringThreads
    metrics: Metrics
    max_body_bytes: int
    body_seconds: float
    is_draining: Callable[[], bool]

    async def respond(self, scope: Scope, receive: Receive, send: Send, answer: Answer) -> None:
        """Read the body of a scoring request, have it answered in a scoring thread, send that or the problem."""
        record = record_of(scope)
        try:
            if self.is_draining():
                raise draining()
            deadline = _deadline(scope, record)
            encoding = encoding_of(scope)
            body, ticket = await self._admit(scope, receive, encoding)
            record.ticket = ticket
            reply = await self._scored(body, encoding, ticket, record, deadline, answer)
        except TimeoutError:
            problem = deadline_passed()
        except ClientDisconnect:
            await send_disconnected(scope, receive, send)
            return
        except Problem as raised:
            problem = raised
        else:
            headers = [(b"content-type", reply.media_type), (b"content-length", str(len(reply.body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": [*headers, *reply.headers]})
            await send({"type": "http.response.body", "body": reply.body})
            record.run_after_answer()
            return
        await send_problem(problem, scope, receive, send, self.metrics)

    def wait_seconds(self, scope: Scope) -> int | None:
        """Whole seconds after which a request with these headers may come, None where it may come now."""
        return self.admission.wait(size_of(scope))

    async def _admit(self, scope: Scope, receive: Receive, encoding: str | None) -> tuple[bytes, Ticket]:
        """The body of a request for which there is room by its headers, and still is once the body is there. Raises
        Problem, ClientDisconnect."""
        seconds = self.wait_seconds(scope)
        if seconds is not None:
            raise busy(seconds)
        body = await read_body_in_time(scope, receive, self.max_body_bytes, self.body_seconds)
        ticket = self.admission.admit(len(body) if encoding is None else None)
        self.metrics.work_in_flight.set(self.admission.in_flight)
        return body, ticket

    async def _scored(
        self,
        body: bytes,
        encoding: str | None,
        ticket: Ticket,
        record: RequestRecord,
        deadline: float | None,
        answer: Answer,
    ) -> Reply:
        """The answer of a scoring thread, if there is time left. Raises Problem, TimeoutError."""
        submitted = record.submitted = time.perf_counter()

        def job() -> Reply:
            begun = record.begun = time.perf_counter()
            self.metrics.queue_seconds.observe_soon(begun - submitted)
            check_deadline(deadline)
            if encoding is None:
                reply = answer(body, record, deadline)
            else:
                plain = unpacked(body, encoding, self.max_body_bytes)
                ticket.size = len(plain)
                reply = answer(plain, record, deadline)
            record.scored = time.perf_counter()
            ticket.scored(record.scored - begun)
            return reply

        try:
            remaining = None if deadline is None else deadline - submitted
            return await asyncio.wait_for(self.threads.run(job), remaining)
        finally:
            ticket.release()
            self.metrics.work_in_flight.set(self.admission.in_flight)


def _deadline(scope: Scope, record: RequestRecord) -> float | None:
    """Deadline of the answer, in seconds of time.perf_counter. None if the client sets none."""
    given = header(scope, TIMEOUT_HEADER)
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal() and len(given) <= 9 and int(given) > 0):
        rule = f"expected a whole number of milliseconds, from 1 to 999999999, got {value_or_kind(given)}"
        raise Problem.wrong_content([Fault(f"header {TIMEOUT_HEADER}", rule)])
    return record.started + int(given) / 1000
