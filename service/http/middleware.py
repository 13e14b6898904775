"""Around every request: its id, its metrics, its log line, and a problem instead of a stack trace.

In: any ASGI application. Out: the same, observed. A plain ASGI wrapper, the outermost one, so that what is measured is
the whole of a request and no answer escapes without an `X-Request-Id`.
"""

import asyncio
import logging
import os
import re
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import product

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.base.errors import Problem, refusal
from service.base.log import FieldLogger, LogLine
from service.base.record import RequestRecord, is_request_id
from service.http.protocol import CUT_OFF
from service.http.tracing import Tracing, trace_id_of
from service.metrics.metrics import ENDPOINTS, EVENTS, SCORING, SCORING_CODES, Metrics

REQUEST_ID = "X-Request-Id"
_MODEL = "/v1/models/"
_USER = re.compile(r"/v1/models/[^/]+/users/")
_REQUEST_SCHEMA = re.compile(r"/v1/models/[^/]+/request-schema$")
_LABELS = re.compile(r"/v1/admin/models/[^/]+/labels")
_VALUE_MODEL = re.compile(r"/v1/admin/models/[^/]+/value_models/[^/]+")
_OPEN_INFERENCE_MODEL = re.compile(r"(/v2/models/)[^/]+(?:/versions/[^/]+)?(/infer|/ready|)")
_QUIET = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
_KEY = "feedrank.record"
_DISCONNECTED = 499  # no client is left to read an answer
# Requests that have ended are counted after so long: what a killed worker has not counted is lost.
MOMENT_SECONDS = 0.02
_HEADERS = "feedrank.headers"  # by name: several are looked up in every request
_REQUEST_ID_KEY = REQUEST_ID.lower().encode("latin-1")

_log = FieldLogger()
_requests = FieldLogger("requests")


def record_of(scope: Scope) -> RequestRecord:
    """The record of the request that `scope` belongs to."""
    record: RequestRecord = scope[_KEY]
    return record


def header(scope: Scope, name: str) -> str | None:
    """The first header of that name, None if there is none."""
    headers: dict[bytes, bytes] | None = scope.get(_HEADERS)
    if headers is None:
        headers = scope[_HEADERS] = dict(reversed(scope["headers"]))
    value = headers.get(_key(name))
    return None if value is None else value.decode("latin-1")


@lru_cache(maxsize=64)
def _key(name: str) -> bytes:
    return name.lower().encode("latin-1")


def request_id_header(record: RequestRecord) -> tuple[bytes, bytes]:
    """The header of an answer with its request's id."""
    return _REQUEST_ID_KEY, record.request_id.encode("latin-1")


def content_length(scope: Scope) -> int | None:
    """The announced size of the body, None where the client does not say."""
    announced = header(scope, "content-length") or ""
    return int(announced) if announced.isdecimal() and len(announced) <= 18 else None


def new_record(scope: Scope) -> RequestRecord:
    """The record of a request that begins."""
    given = header(scope, REQUEST_ID)
    return RequestRecord(
        request_id=given if given is not None and is_request_id(given) else os.urandom(16).hex(),
        endpoint=_endpoint(scope["path"]),
        trace_id=trace_id_of(header(scope, "traceparent")),
    )


def response_to(problem: Problem, scope: Scope, metrics: Metrics) -> Response:
    """The response of a refusal, counted by its reason."""
    problem.__traceback__ = None  # a cycle with the frame that caught it, which only the garbage collector would free
    if problem.reason is not None:
        metrics.rejected.labels(problem.reason).inc()
    return refusal(problem, scope["path"], record_of(scope).request_id)


async def send_problem(problem: Problem, scope: Scope, receive: Receive, send: Send, metrics: Metrics) -> None:
    """Send a refusal, counted by its reason."""
    await response_to(problem, scope, metrics)(scope, receive, send)


def failed(error: BaseException, record: RequestRecord) -> Problem:
    """500, for an error of the service, whose traceback is logged."""
    _log.exception("a request failed", error, request_id=record.request_id)
    return Problem(500, "an error of the service, not of the request; its log says more")


def draining() -> Problem:
    """503: no request is taken any more."""
    return Problem(503, "the service is shutting down", reason="draining", retry_after=1)


async def send_disconnected(scope: Scope, receive: Receive, send: Send) -> None:
    """End a request whose client has left. The code is for the log and the metrics."""
    await Response(status_code=scope.get(CUT_OFF, _DISCONNECTED))(scope, receive, send)


class Observe:
    """Wraps `app`, as the module's docstring says."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._app = app
        self._tracing = tracing
        self._metrics = metrics
        # Looked up once: finding a label set costs more than counting in it.
        self._seconds = {endpoint: metrics.request_seconds.labels(endpoint) for endpoint in ENDPOINTS}
        self._ended: deque[tuple[RequestRecord, Scope]] = deque()
        metrics.before_flush = self.finish_ended
        codes = [*product(SCORING, SCORING_CODES), (EVENTS, 202)]
        self._codes = {(path, code): metrics.requests.labels(path, code) for path, code in codes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record: RequestRecord = scope.get(_KEY) or self.begin(scope)
        is_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), request_id_header(record)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            problem = failed(error, record)
            if not is_started:
                await refusal(problem, scope["path"], record.request_id)(scope, receive, send_with_id)
        finally:
            self.end(record, scope)

    def begin(self, scope: Scope) -> RequestRecord:
        """The record of a request that begins, which is in flight from now on."""
        record = scope[_KEY] = new_record(scope)
        if record.endpoint in SCORING:
            self._metrics.num_in_flight += 1
        return record

    def end(self, record: RequestRecord, scope: Scope) -> None:
        """A request that has begun is over."""
        if record.endpoint in SCORING:
            self._metrics.num_in_flight -= 1
        self.finish(record, scope)

    def end_soon(self, record: RequestRecord, scope: Scope) -> None:
        """A request that has begun is over. It is counted, traced and logged within a moment, with others of that
        moment: what this takes is then in the processor's caches, where a request alone would find the next."""
        if record.endpoint in SCORING:
            self._metrics.num_in_flight -= 1
        record.end()
        if not self._ended:
            asyncio.get_running_loop().call_later(MOMENT_SECONDS, self.finish_ended)
        self._ended.append((record, scope))

    def finish_ended(self) -> None:
        """Count, trace and log the requests that have ended. Safe from several threads."""
        ended: list[tuple[RequestRecord, Scope]] = []
        with suppress(IndexError):
            while True:
                ended.append(self._ended.popleft())
        _requests.all_at(logging.INFO, "request", self._counted(ended))

    def finish(self, record: RequestRecord, scope: Scope) -> None:
        """Counts, traces and logs a request that is over."""
        record.end()
        level = logging.DEBUG if record.endpoint in _QUIET else logging.INFO
        _requests.all_at(level, "request", self._counted([(record, scope)]))

    def _counted(self, ended: Iterable[tuple[RequestRecord, Scope]]) -> list[LogLine]:
        """The lines of requests that are over, once they are counted and traced."""
        lines: list[LogLine] = []
        answered: list[RequestRecord] = []
        for record, scope in ended:
            self._seconds[record.endpoint].observe_soon(record.seconds)
            # A batch that is answered counts as its requests.
            parts = record.parts if record.status == 200 else []
            for part in parts:
                part.seconds, part.ended = record.seconds, record.ended
            answered += parts or (record,)
            if self._tracing is not None and record.endpoint in SCORING:
                self._tracing.trace(record, {name: header(scope, name) or "" for name in ("traceparent", "tracestate")})
            lines += [one.line() for one in (*parts, record)]
        self._count(answered)
        return lines

    def _count(self, records: Sequence[RequestRecord]) -> None:
        """Count requests, those of one outcome at once: to find its label sets costs more than all else."""
        metrics = self._metrics
        outcomes: dict[tuple[str, int, str | None, str | None], int] = {}
        for one in records:
            outcome = one.endpoint, one.status, one.model, one.model_version
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            if one.count_scores is not None:
                one.count_scores()
            if one.experiments and one.model_version is not None:
                metrics.experiments.count(one.model, one.experiments, one.status)
        for (endpoint, status, model, version), count in outcomes.items():
            (self._codes.get((endpoint, status)) or metrics.requests.labels(endpoint, status)).inc(count)
            if version is not None:
                metrics.model_requests.labels(model, version, status).inc(count)


@lru_cache(maxsize=64)
def _endpoint(path: str) -> str:
    """The route of a path: a metric must not have a label for every path that a scanner invents."""
    if path in ENDPOINTS:
        return path
    if _USER.match(path):
        return "/v1/models/{name}/users/{key}"
    if path.startswith(_MODEL):
        return "/v1/models/{name}/request-schema" if _REQUEST_SCHEMA.match(path) else "/v1/models/{name}"
    if _LABELS.fullmatch(path):
        return "/v1/admin/models/{name}/labels"
    if _VALUE_MODEL.fullmatch(path):
        return "/v1/admin/models/{name}/value_models/{entry}"
    model = _OPEN_INFERENCE_MODEL.fullmatch(path)
    if model is not None:
        return f"{model[1]}{{name}}{model[2]}"
    return "other"
