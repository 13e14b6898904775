"""A scoring request past ASGI: taken by its headers, answered by one callback of the event loop.

In: the scope of a request, then its body (service/http/scoring_protocol.py). Out: status, headers and body of its
answer. The steps are those of service/responder.py. What is to be refused before its body is there is not taken, and
goes the way of all requests.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from starlette.types import Scope

from service.base.errors import Problem
from service.base.record import RequestRecord
from service.http.keys import Keys
from service.http.middleware import Observe, content_length, failed, header, request_id_header, response_to
from service.http.scoring_protocol import SendAnswer
from service.pipeline import Scoring
from service.responder import Asked, Outcome, Responder, headers_of


@dataclass(frozen=True, slots=True)
class DirectWay:
    """The scoring requests of one process. `scoring_at` has the scoring of an address, None for
    one that scores nothing."""

    responder: Responder
    keys: Keys
    observe: Observe
    scoring_at: Callable[[Scope], Scoring | None]

    @property
    def body_seconds(self) -> float:
        """Seconds that a body may take."""
        return self.responder.body_seconds

    def open_request(self, scope: Scope) -> "DirectRequest | None":
        """A request that is answered once its body is there. None where it goes the way of all."""
        scoring = self.scoring_at(scope) if scope["method"] == "POST" else None
        size = content_length(scope)
        if scoring is None or size is None or size > self.responder.max_body_bytes:
            return None
        record = self.observe.begin(scope)
        try:
            record.key = self.keys.check(header(scope, "Authorization"), "score")
            asked = self.responder.check(scope, record)
        except Problem:
            return None
        return DirectRequest(self, scope, record, asked, scoring)


class DirectRequest(NamedTuple):
    """A request that was taken by its headers."""

    way: DirectWay
    scope: Scope
    record: RequestRecord
    asked: Asked
    scoring: Scoring

    def take_body(self, body: bytes, send: SendAnswer) -> None:
        """Score the body in a scoring thread, then send the answer or the problem."""

        def done(outcome: Outcome) -> None:
            self._finish(outcome, send)

        try:
            self.way.responder.score(body, self.asked, self.record, self.scoring, done)
        except Exception as error:
            done(error)

    def _finish(self, outcome: Outcome, send: SendAnswer) -> None:
        record, way = self.record, self.way
        try:
            if isinstance(outcome, BaseException):
                problem = outcome if isinstance(outcome, Problem) else failed(outcome, record)
                response = response_to(problem, self.scope, way.responder.metrics)
                record.status = response.status_code
                send(record.status, [*response.raw_headers, request_id_header(record)], bytes(response.body))
            else:
                record.status = 200
                record.run_before_answer()
                send(200, [*headers_of(outcome), request_id_header(record)], outcome.body)
                record.run_after_answer()
        finally:
            way.observe.end_soon(record, self.scope)
