"""POST /v1/events: what users did with a ranking, accepted once it is on the disk.

In: a body of 1 to 1,000 events (service/events/event.py). Out: `202 {"accepted": 3}`, or a Problem for all of them. A
body of a known length is taken past ASGI (service/direct.py), and others as plain ASGI: what a framework's route costs
is as much as a hundred events.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from functools import partial

import msgspec
import numpy as np
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.base.clock import rfc3339
from service.base.errors import FAULTS_SHOWN, Fault, Problem
from service.base.record import RequestRecord
from service.events.event import MAX_BODY_BYTES, EventReader, ModelEvents, read_events
from service.events.event_log import EventLog
from service.events.event_types import EventTypes
from service.http.body import read_body_in_time
from service.http.content_encoding import encoding_of, unpacked
from service.http.keys import Right
from service.http.middleware import draining, record_of, send_disconnected, send_problem
from service.metrics.metrics import Metrics
from service.models.store import ModelStore
from service.rank.answer import Reply

_OTHER = "other"
# What came of a request that was taken, and who takes it.
Outcome = Reply | BaseException
Done = Callable[[Outcome], None]

_encoder = msgspec.json.Encoder()


class Events:
    """The route of one process. `log` is None where events are off. `is_draining` says that no request is taken any
    more."""

    right: Right = "events"
    max_body_bytes = MAX_BODY_BYTES

    def __init__(
        self,
        store: ModelStore,
        types: EventTypes,
        log: EventLog | None,
        metrics: Metrics,
        body_seconds: float,
        is_draining: Callable[[], bool],
    ) -> None:
        self._store = store
        self._types = types
        self._log = log
        self._metrics = metrics
        self._body_seconds = body_seconds
        self._is_draining = is_draining
        self._readers: dict[str, EventReader] = {}

    def open_request(self, scope: Scope, _record: RequestRecord) -> Callable[[bytes, Done], None]:
        """Check a request by its headers. What is returned takes its body. Raises Problem: 404, 415, 503."""
        if self._log is None:
            raise Problem(404, "events are off: start the service with --event-log DIR")
        if self._is_draining():
            raise draining()
        return partial(self._accept, self._log, encoding_of(scope))

    async def take_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        try:
            accept = self.open_request(scope, record_of(scope))
            body = await read_body_in_time(scope, receive, MAX_BODY_BYTES, self._body_seconds)
            outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            accept(body, partial(_set_outcome, outcome))
            reply = await outcome
            if isinstance(reply, BaseException):
                raise reply
        except ClientDisconnect:
            await send_disconnected(scope, receive, send)
            return
        except Problem as raised:
            problem = raised
        else:
            await send({"type": "http.response.start", "status": reply.status, "headers": reply.raw_headers})
            await send({"type": "http.response.body", "body": reply.body})
            return
        await send_problem(problem, scope, receive, send, self._metrics)

    def _accept(self, log: EventLog, encoding: str | None, body: bytes, done: Done) -> None:
        """Write the events of a body. `done` is called with what came of it, on the event loop. Raises Problem."""
        if encoding is not None:
            body = unpacked(body, encoding, MAX_BODY_BYTES)
        found = read_events(body, self._reader_of)
        self._check_identities(found)
        num_events = sum(len(of_model.events) for of_model in found)

        def settle(received: datetime | Problem) -> None:
            if isinstance(received, Problem):
                done(received)
                return
            self._count(found, received)
            done(Reply(b'{"accepted": %d}' % num_events, status=202))

        log.append(partial(_lines, found), num_events, settle)

    def _count(self, found: list[ModelEvents], received: datetime) -> None:
        """Count events that are written."""
        for reader, events, _ in found:
            named = self._types.named(reader.model) | self._appending(reader.model)
            counts = Counter(event.type if event.type in named else _OTHER for event in events)
            for event_type, count in counts.items():
                self._metrics.events.labels(reader.model, event_type).inc(count)
            delays = [(received - event.time).total_seconds() for event in events if isinstance(event.time, datetime)]
            if delays:
                self._metrics.event_delay_seconds.observe_soon(np.maximum(delays, 0.0))

    def _reader_of(self, model: str | None) -> EventReader:
        """The reader of a model's events. Raises Problem where it is not served."""
        served = self._store.find(model, None)
        encoder = served.scorer.encoder
        reader = self._readers.get(served.name)
        if reader is None or reader.encoder is not encoder:
            reader = self._readers[served.name] = EventReader(served.name, encoder)
        return reader

    def _appending(self, model: str) -> frozenset[str]:
        """The types whose events add to histories of users."""
        stateful = self._store.stateful_model(model)
        return frozenset() if stateful is None else stateful.file.adding_types

    def _check_identities(self, found: list[ModelEvents]) -> None:
        """Raise Problem 422 where repeats of an event that adds up cannot be distinguished."""
        faults = []
        for reader, events, places in found:
            adding = self._types.adding(reader.model) | self._appending(reader.model)
            if adding:
                faults += [
                    Fault(
                        f"events[{place}].event_id",
                        f"needed for type '{event.type}', whose events add up: the same id again is the same event",
                    )
                    for place, event in zip(places, events, strict=True)
                    if event.type in adding and event.event_id is msgspec.UNSET
                ]
        if faults:
            raise Problem.wrong_content(faults[:FAULTS_SHOWN])


def _set_outcome(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not future.done():  # the request was cancelled meanwhile
        future.set_result(outcome)


def _lines(found: list[ModelEvents], received: datetime) -> bytes:
    """The lines of the log for events that were received at a time."""
    stamp = rfc3339(received)
    parts = []
    for reader, events, _ in found:
        head = b'{"received":"%b","model":%b,' % (stamp.encode(), _encoder.encode(reader.model))
        # In encoded JSON a line breaks between events alone, and no event is empty.
        parts.append(head + _encoder.encode_lines(events)[1:-1].replace(b"\n{", b"\n" + head) + b"\n")
    return b"".join(parts)
