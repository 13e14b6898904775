"""A scoring request on the event loop: read under limits, admitted, answered in a scoring thread, sent or refused.

In: an ASGI request, and the scoring of its address (service/pipeline.py, or that of /v2). Out: the answer, or a
problem. What waits until an answer has left is done then.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.base.errors import Fault, Problem, value_or_kind
from service.base.record import RequestRecord
from service.http.admission import Admission, Ticket, busy
from service.http.body import read_body_in_time
from service.http.content_encoding import encoding_of, size_of, unpacked
from service.http.middleware import draining, header, record_of, send_disconnected, send_problem
from service.metrics.metrics import Metrics
from service.pipeline import TIMEOUT_HEADER, Answer, Scoring, Waiting, check_deadline, deadline_passed
from service.process.scoring_threads import Job, ScoringThreads
from service.rank.answer import Reply
from service.state.lookups import Lookup
from service.state.users import Users

# Of a request that was admitted.
Outcome = Reply | BaseException


class Asked(NamedTuple):
    """Wishes of headers: an answer by a time of time.perf_counter, a body to be decoded first."""

    deadline: float | None
    encoding: str | None


@dataclass(frozen=True, slots=True)
class Responder:
    """The way of scoring requests through one process. `is_draining` says that no request is taken any more."""

    admission: Admission
    threads: ScoringThreads
    metrics: Metrics
    max_body_bytes: int
    body_seconds: float
    is_draining: Callable[[], bool]
    users: Users

    async def respond(self, scope: Scope, receive: Receive, send: Send, scoring: Scoring) -> None:
        """Read the body of a scoring request, have it answered in a scoring thread, send that or the problem."""
        record = record_of(scope)
        try:
            asked = self.check(scope, record)
            seconds = self.wait_seconds(scope)
            if seconds is not None:
                raise busy(seconds)
            body = await read_body_in_time(scope, receive, self.max_body_bytes, self.body_seconds)
            reply = await self._scored(body, asked, record, scoring)
        except ClientDisconnect:
            await send_disconnected(scope, receive, send)
            return
        except Problem as problem:
            await send_problem(problem, scope, receive, send, self.metrics)
            return
        record.run_before_answer()
        await send({"type": "http.response.start", "status": reply.status, "headers": reply.raw_headers})
        await send({"type": "http.response.body", "body": reply.body})
        record.run_after_answer()

    def check(self, scope: Scope, record: RequestRecord) -> Asked:
        """Wishes of a request's headers. Raises Problem: 415, 422, 503."""
        if self.is_draining():
            raise draining()
        return Asked(_deadline(scope, record), encoding_of(scope))

    def wait_seconds(self, scope: Scope) -> int | None:
        """Whole seconds after which a request with these headers may come, None where it may come now."""
        # A process without work takes any request, whose headers need not be read for that.
        return self.admission.wait(size_of(scope)) if self.admission.in_flight else None

    async def _scored(self, body: bytes, asked: Asked, record: RequestRecord, scoring: Scoring) -> Reply:
        """The answer of a scoring thread. Raises Problem and what else the job raises."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        stop_waiting = self.score(asked, record, scoring, body, outcome.set_result)
        try:
            scored = await outcome
        except asyncio.CancelledError:
            stop_waiting()
            raise
        if isinstance(scored, BaseException):
            raise scored
        return scored

    def score(
        self, asked: Asked, record: RequestRecord, scoring: Scoring, body: bytes, done: Callable[[Outcome], None]
    ) -> Callable[[], None]:
        """Score a body in a scoring thread, if there still is room. `done` takes what came of it, on the event
        loop and once, but for a caller that stops waiting by what is returned. Raises Problem 429."""
        deadline, encoding = asked
        ticket = record.ticket = self.admission.admit(len(body) if encoding is None else None)
        record.submitted = time.perf_counter()
        run = _Run(self, body, asked, record, scoring.answer, done, ticket)
        lookup = scoring.guess_lookup(body, deadline) if encoding is None else None
        record.lookup = lookup
        if lookup is None:
            run.job = self.threads.submit(run.start, run.settle)
        else:
            run.job = self.threads.prepare(run.start, run.settle)
            self.users.lookups.call_at_end(lookup, partial(self.threads.begin, run.job))
        if deadline is not None:
            seconds = deadline - record.submitted
            run.timer = asyncio.get_running_loop().call_later(seconds, run.expire)
        return run.stop_waiting


@dataclass(slots=True, eq=False)
class _Run:
    """A body on its way through the scoring threads."""

    responder: Responder
    body: bytes
    asked: Asked
    record: RequestRecord
    answer: Answer
    done: Callable[[Outcome], None]
    ticket: Ticket
    job: Job | None = None
    timer: asyncio.TimerHandle | None = None

    def start(self) -> Reply | Waiting:
        """Score the body. Runs in a scoring thread."""
        deadline, encoding = self.asked
        record, responder, body = self.record, self.responder, self.body
        assert record.submitted is not None
        begun = record.begun = time.perf_counter()
        responder.metrics.queue_seconds.observe_soon(begun - record.submitted)
        check_deadline(deadline)
        if encoding is not None:
            body = unpacked(body, encoding, responder.max_body_bytes)
            self.ticket.size = len(body)
        return self._finished(self.answer(body, record, deadline), begun)

    def _finished(self, reply: Reply | Waiting, begun: float) -> Reply | Waiting:
        self.record.scored = time.perf_counter()
        if isinstance(reply, Reply):
            self.ticket.scored(self.record.scored - begun)
        return reply

    def resume(self, waiting: Waiting, spent: float) -> Reply | Waiting:
        """Score what waited for a look-up, and took so many seconds before. Runs in a scoring thread."""
        begun = time.perf_counter() - spent
        check_deadline(self.asked.deadline)
        return self._finished(waiting.resume(), begun)

    def settle(self, reply: Reply | Waiting, error: BaseException | None) -> None:
        """Take what came of the job."""
        if isinstance(reply, Waiting):
            spent = (self.record.scored or 0.0) - (self.record.begun or 0.0)
            self.begin(partial(self.resume, reply, spent), reply.lookup)
        else:
            self._end(reply if error is None else error)

    def begin(self, work: Callable[[], Reply | Waiting], lookup: Lookup) -> None:
        """Have work done when a look-up has ended: its thread hands it to the scoring threads."""
        threads = self.responder.threads
        try:
            self.job = threads.prepare(work, self.settle)
        except RuntimeError as error:  # the threads have ended
            self._end(error)
        else:
            self.responder.users.lookups.call_at_end(lookup, partial(threads.begin, self.job))

    def stop_waiting(self) -> None:
        """Take nothing more of it."""
        if self.job is not None:
            self.job.cancel()
        self._release()

    def expire(self) -> None:
        """Its deadline has passed."""
        self.stop_waiting()
        self.done(deadline_passed())

    def _end(self, outcome: Outcome) -> None:
        self._release()
        self.done(outcome)

    def _release(self) -> None:
        self.ticket.release()
        self.job = None  # which refers to this: only the collector would free either
        if self.timer is not None:
            self.timer.cancel()


def _deadline(scope: Scope, record: RequestRecord) -> float | None:
    """Deadline of the answer, in seconds of time.perf_counter. None if the client sets none."""
    given = header(scope, TIMEOUT_HEADER)
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal() and len(given) <= 9 and int(given) > 0):
        rule = f"expected a whole number of milliseconds, from 1 to 999999999, got {value_or_kind(given)}"
        raise Problem.wrong_content([Fault(f"header {TIMEOUT_HEADER}", rule)])
    return record.started + int(given) / 1000
