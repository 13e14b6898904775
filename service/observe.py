"""Around every request: its id, its metrics, its log line, and a problem instead of a stack trace.

In: any ASGI application. Out: the same, observed. A plain ASGI wrapper, the outermost one, so that what is measured is
the whole of a request and no answer escapes without an `X-Request-Id`.
"""

import logging
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Problem, problem_response
from service.metrics import ENDPOINTS, RANK_CODES, Metrics
from service.request_log import LOGGER, RequestRecord
from service.wire import is_request_id

RANK = "/v1/rank"
REQUEST_ID = "X-Request-Id"
_MODEL = "/v1/models/"
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
_KEY = "feedrank.record"
_REQUEST_ID_KEY = REQUEST_ID.lower().encode("latin-1")

_log = logging.getLogger(LOGGER)


def record_of(scope: Scope) -> RequestRecord:
    """The record of the request that `scope` belongs to."""
    record: RequestRecord = scope[_KEY]
    return record


def header(scope: Scope, name: str) -> str | None:
    """The first header of that name, None if there is none."""
    key = name.lower().encode("latin-1")
    for given, value in scope["headers"]:
        if given == key:
            text: str = value.decode("latin-1")
            return text
    return None


class Observe:
    """Wraps `app`; see the module."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        # Looked up once: finding a label set costs more than counting in it.
        self._seconds = {endpoint: metrics.request_seconds.labels(endpoint) for endpoint in ENDPOINTS}
        self._rank_codes = {code: metrics.requests.labels(RANK, code) for code in RANK_CODES}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, REQUEST_ID)
        record = RequestRecord(
            request_id=given if given is not None and is_request_id(given) else uuid.uuid4().hex,
            endpoint=_endpoint(scope["path"]),
        )
        scope[_KEY] = record
        is_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                record.status = message["status"]
                identifier = (_REQUEST_ID_KEY, record.request_id.encode("latin-1"))
                message["headers"] = [*message.get("headers", ()), identifier]
            await send(message)

        is_rank = record.endpoint == RANK
        if is_rank:
            self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            _log.exception("a request failed", extra={"fields": {"request_id": record.request_id}})
            if not is_started:
                problem = Problem(500, "an error of the service, not of the request; its log says more")
                await problem_response(problem, record.request_id)(scope, receive, send_with_id)
        finally:
            if is_rank:
                self._metrics.in_flight.dec()
            record.seconds = time.perf_counter() - record.started
            self._count(record)
            record.log(logging.DEBUG if record.endpoint in _QUIET else logging.INFO)

    def _count(self, record: RequestRecord) -> None:
        self._seconds[record.endpoint].observe_soon(record.seconds)
        known = self._rank_codes.get(record.status) if record.endpoint == RANK else None
        (known or self._metrics.requests.labels(record.endpoint, record.status)).inc()


def _endpoint(path: str) -> str:
    """The route of a path: a metric must not have a label for every path that a scanner invents."""
    if path.startswith(_MODEL):
        return "/v1/models/{name}"
    return path if path in ENDPOINTS else "other"
