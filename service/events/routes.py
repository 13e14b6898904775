"""POST /v1/events: what users did with a ranking, accepted once it is on the disk.

In: a body of 1 to 1,000 events (service/events/event.py). Out: `202 {"accepted": 3}`, or a Problem for all of them. As
plain ASGI: what a framework's route costs is as much as a hundred events.
"""

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
from service.events.event import MAX_BODY_BYTES, EventReader, ModelEvents, read_events
from service.events.event_log import EventLog
from service.events.event_types import EventTypes
from service.http.body import read_body_in_time
from service.http.content_encoding import encoding_of, unpacked
from service.http.middleware import draining, send_disconnected, send_problem
from service.metrics.metrics import Metrics
from service.models.store import ModelStore

_OTHER = "other"

_encoder = msgspec.json.Encoder()


class Events:
    """The route of one process. `log` is None where events are off. `is_draining` says that no request is taken any
    more."""

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

    async def take_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        try:
            if self._log is None:
                raise Problem(404, "events are off: start the service with --event-log DIR")
            if self._is_draining():
                raise draining()
            encoding = encoding_of(scope)
            body = await read_body_in_time(scope, receive, MAX_BODY_BYTES, self._body_seconds)
            if encoding is not None:
                body = unpacked(body, encoding, MAX_BODY_BYTES)
            accepted = await self._accept(self._log, body)
        except ClientDisconnect:
            await send_disconnected(scope, receive, send)
            return
        except Problem as raised:
            problem = raised
        else:
            answer = b'{"accepted": %d}' % accepted
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
            await send({"type": "http.response.start", "status": 202, "headers": headers})
            await send({"type": "http.response.body", "body": answer})
            return
        await send_problem(problem, scope, receive, send, self._metrics)

    async def _accept(self, log: EventLog, body: bytes) -> int:
        """Write the events of a body and return how many they are. Raises Problem."""
        found = read_events(body, self._reader_of)
        self._check_identities(found)
        num_events = sum(len(of_model.events) for of_model in found)
        received = await log.append(partial(_lines, found), num_events)
        for reader, events, _ in found:
            named = self._types.named(reader.model) | self._appending(reader.model)
            counts = Counter(event.type if event.type in named else _OTHER for event in events)
            for event_type, count in counts.items():
                self._metrics.events.labels(reader.model, event_type).inc(count)
            delays = [(received - event.time).total_seconds() for event in events if isinstance(event.time, datetime)]
            if delays:
                self._metrics.event_delay_seconds.observe_soon(np.maximum(delays, 0.0))
        return num_events

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


def _lines(found: list[ModelEvents], received: datetime) -> bytes:
    """The lines of the log for events that were received at a time."""
    stamp = rfc3339(received)
    parts = []
    for reader, events, _ in found:
        head = b'{"received":"%b","model":%b,' % (stamp.encode(), _encoder.encode(reader.model))
        # In encoded JSON a line breaks between events alone, and no event is empty.
        parts.append(head + _encoder.encode_lines(events)[1:-1].replace(b"\n{", b"\n" + head) + b"\n")
    return b"".join(parts)
