"""A request past ASGI: taken by its headers, answered by one callback of the event loop.

In: the scope of a request, then its body (service/http/scoring_protocol.py). Out: status, headers and body of its
answer. The steps are those of the address: a scoring's (service/responder.py), or those of events
(service/events/routes.py). What is to be refused before its body is there is not taken, and goes the way of all
requests.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from starlette.types import Scope

from service.base.errors import Problem
from service.base.record import RequestRecord
from service.http.keys import Keys, Right
from service.http.middleware import Observe, content_length, failed, header, request_id_header, response_to
from service.http.scoring_protocol import SendAnswer
from service.metrics.metrics import Metrics
from service.pipeline import Scoring
from service.rank.answer import Reply
from service.responder import Responder

# Of a request that was taken.
Outcome = Reply | BaseException
# Takes a body, and what is called once, on the event loop, with what came of it.
TakeBody = Callable[[bytes, Callable[[Outcome], None]], object]


class Address(Protocol):
    """An address whose requests can be answered past ASGI. A key needs the scope `right` for it."""

    @property
    def right(self) -> Right:
        """Scope that a key needs."""

    @property
    def max_body_bytes(self) -> int:
        """Limit of a body."""

    def open_request(self, scope: Scope, record: RequestRecord) -> TakeBody:
        """Check a request by its headers. Raises Problem."""


class ScoringAddress(NamedTuple):
    """An address that scores."""

    responder: Responder
    scoring: Scoring
    right: Right = "score"

    @property
    def max_body_bytes(self) -> int:
        """Limit of a body."""
        return self.responder.max_body_bytes

    def open_request(self, scope: Scope, record: RequestRecord) -> TakeBody:
        """Check a request by its headers. Raises Problem: 415, 422, 503."""
        return partial(self.responder.score, self.responder.check(scope, record), record, self.scoring)


@dataclass(frozen=True, slots=True)
class DirectWay:
    """The requests past ASGI of one process. `address_of` has the address of a scope, None for one whose requests
    go the way of all."""

    keys: Keys
    observe: Observe
    metrics: Metrics
    # Seconds that a body may take.
    body_seconds: float
    address_of: Callable[[Scope], Address | None]

    def open_request(self, scope: Scope) -> "DirectRequest | None":
        """A request that is answered once its body is there. None where it goes the way of all."""
        address = self.address_of(scope) if scope["method"] == "POST" else None
        size = content_length(scope)
        if address is None or size is None or size > address.max_body_bytes:
            return None
        record = self.observe.begin(scope)
        try:
            record.key = self.keys.check(header(scope, "Authorization"), address.right)
            take = address.open_request(scope, record)
        except Problem:
            return None
        return DirectRequest(self, scope, record, take)


class DirectRequest(NamedTuple):
    """A request that was taken by its headers."""

    way: DirectWay
    scope: Scope
    record: RequestRecord
    take: TakeBody

    def take_body(self, body: bytes, send: SendAnswer) -> None:
        """Have the body answered, then send the answer or the problem."""

        def done(outcome: Outcome) -> None:
            self._finish(outcome, send)

        try:
            self.take(body, done)
        except Exception as error:
            done(error)

    def _finish(self, outcome: Outcome, send: SendAnswer) -> None:
        record, way = self.record, self.way
        try:
            if isinstance(outcome, BaseException):
                problem = outcome if isinstance(outcome, Problem) else failed(outcome, record)
                response = response_to(problem, self.scope, way.metrics)
                record.status = response.status_code
                send(record.status, [*response.raw_headers, request_id_header(record)], bytes(response.body))
            else:
                record.status = outcome.status
                record.run_before_answer()
                send(record.status, [*outcome.raw_headers, request_id_header(record)], outcome.body)
                record.run_after_answer()
        finally:
            way.observe.end_soon(record, self.scope)
