"""The application of one process: its routes, and its life from the first poll of the models to the last request.

Out: `create_app(settings)`, an ASGI application for any server. A scoring request is read under limits on the event
loop (service/responder.py), by the service's own server past ASGI (service/direct.py). Everything else that it costs
happens in one scoring thread (service/pipeline.py).
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial
from types import FrameType
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api_document import api_document, with_models
from service.base.clock import Clock
from service.base.errors import Problem, refusal
from service.base.log import FieldLogger
from service.base.replaced_clock import ReplacedClock
from service.batch import scorings
from service.direct import Address, DirectWay, ScoringAddress
from service.events.event_types import EventTypes
from service.events.routes import Events
from service.http.admission import Admission
from service.http.authorize import Authorize
from service.http.body import read_plain_body
from service.http.certificates import Certificates
from service.http.keys import STATUS, Keys
from service.http.middleware import Observe, header, record_of, send_problem
from service.http.protocol import SHED, GuardedProtocol
from service.http.scoring_protocol import DIRECT
from service.http.shedding import Shedding
from service.http.tracing import Tracing
from service.logs import appender, event_log, impression_log, shipper, state_store
from service.metrics.metrics import EVENTS, INFER, Metrics
from service.models.admin import admin_routes
from service.models.routes import model_routes
from service.models.store import ModelStore, not_ready
from service.models.value_model_route import value_model_routes
from service.open_inference.routes import INFER_VERSION, OpenInference
from service.pipeline import Ranking
from service.play.routes import play_routes
from service.policy.choosing import Choosing
from service.policy.placing import PolicyPlacing
from service.policy.repeats import RepeatedIds
from service.process.scoring_threads import STALLED_SECONDS, ScoringThreads
from service.process.signals import reload_on_hangup
from service.rank.schema_route import schema_routes
from service.responder import Responder
from service.settings import Settings
from service.state.lookups import Lookups
from service.state.routes import UserRoutes
from service.state.users import Users
from service.watch.drift import Drift
from service.watch.shadow import ShadowScoring
from service.watch.status_page import StatusPage

# How old the histograms may be that another worker reads for a scrape.
_FLUSH_SECONDS = 0.5
# Seconds from a SIGHUP to another reading of the keys. Otherwise it is the service's poll seconds.
_KEYS_SECONDS = 0.1

SignalHandler = Callable[[int, FrameType | None], Any]

_log = FieldLogger()


class Service:
    """State that the routes of one process share."""

    def __init__(self, settings: Settings, certificates: Certificates | None = None) -> None:
        self.settings = settings
        self.certificates = certificates
        self.metrics = Metrics()
        self.clock = Clock() if settings.clock is None else ReplacedClock(settings.clock)
        self.keys = Keys(settings.keys_file, settings.poll_seconds)
        self.store = ModelStore(
            settings.models,
            self.metrics,
            poll_seconds=settings.poll_seconds,
            torch_threads=settings.torch_threads,
            engine=settings.engine,
            verify_key=settings.verify_key,
        )
        self.state = state_store(settings)
        self.lookups = None
        if self.state is not None:
            self.lookups = Lookups(self.state, settings.state_timeout_ms / 1000, self.metrics.state)
        users = Users(self.store, self.lookups, self.metrics.state)
        read_body = partial(read_plain_body, seconds=settings.body_seconds)
        self.user_routes = UserRoutes(self.store, self.state, read_body)
        self.threads = ScoringThreads(settings.scoring_threads, settings.torch_threads)
        self.responder = Responder(
            Admission(settings.scoring_threads, settings.queue_seconds, settings.max_candidates),
            self.threads,
            self.metrics,
            settings.max_body_bytes,
            settings.body_seconds,
            lambda: self.is_draining,
            users,
        )
        self.metrics.work = lambda: self.responder.admission.in_flight
        self.impressions = impression_log(settings, self.metrics, self.clock)
        self.event_log = event_log(settings, self.metrics, self.clock)
        self.shipper = shipper(settings, self.metrics)
        self.event_types = EventTypes(settings.models, self.metrics)
        seconds = settings.body_seconds
        self.events = Events(
            self.store, self.event_types, self.event_log, self.metrics, seconds, lambda: self.is_draining
        )
        self.appender = appender(settings, self.state, self.store, self.metrics)
        self.shadow = ShadowScoring(self.store, self.metrics, settings.shadow_sample, lambda: self.threads.is_full)
        self.drift = Drift(self.metrics.drift)
        endpoint = settings.otlp_endpoint
        self.tracing = None if endpoint is None else Tracing(endpoint)
        self.ranking = Ranking(
            self.store,
            Choosing(self.store, self.clock, self.metrics),
            self.metrics,
            self.impressions,
            self.shadow,
            self.drift,
            settings.max_candidates,
            settings.unknown_candidates,
            users,
            PolicyPlacing(self.clock, self.metrics.policies, RepeatedIds(self.metrics.folder)),
        )
        self.scorings = scorings(self.ranking, self.metrics)
        shown = self.metrics, self.store.entries, self.store.journal, lambda: self.unready_reason, self._file_errors
        self.status = StatusPage(*shown, has_play=settings.play == "on")
        # Readiness is off, and later no request is taken any more.
        self.is_leaving = False
        self.is_draining = False
        self._is_open = False
        # For the server's HTTP protocol, before a request reaches the application.
        self.shed: Shedding | None = None
        self.direct: DirectWay | None = None

    async def rank(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /v1/rank or that of batches, as plain ASGI. Another method is a 405."""
        if scope["method"] != "POST":
            problem = Problem(405, "Method Not Allowed", headers={"Allow": "POST"})
            await send_problem(problem, scope, receive, send, self.metrics)
            return
        await self.responder.respond(scope, receive, send, self.scorings[scope["path"]])

    @property
    def unready_reason(self) -> str | None:
        """Reason why the service should get no traffic, None if it should."""
        if self.is_leaving or self.is_draining:
            return "the service is shutting down"
        if self.threads.is_stalled:
            return f"no scoring thread has made progress for {STALLED_SECONDS:g} s"
        return self.store.unready_reason

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[dict[str, Any]]:
        """Starts polling for models. At the end it waits for what runs."""
        settings = self.settings
        _log.info(
            "serving",
            models=str(settings.models),
            scoring_threads=settings.scoring_threads,
            torch_threads_per_scoring_thread=settings.torch_threads,
            omp_num_threads=os.environ.get("OMP_NUM_THREADS"),
            cores=sorted(os.sched_getaffinity(0)),
            max_body_bytes=settings.max_body_bytes,
            max_candidates=settings.max_candidates,
        )
        self._drain_on_signals()
        self.store.start()
        tasks = [asyncio.create_task(task) for task in self._tasks()]
        parts = [
            one
            for one in (
                self.impressions,
                self.event_log,
                self.shipper,
                self.shadow,
                self.drift,
                self.lookups,
                self.appender,
            )
            if one is not None
        ]
        for part in parts:
            part.start()
        try:
            # Workers share a socket: one that took connections while it loads would refuse what another could answer.
            opens_at = time.monotonic() + settings.startup_seconds
            while not (self.store.has_looked or self.is_draining or time.monotonic() > opens_at):
                await asyncio.sleep(0.02)
            self._is_open = True
            with reload_on_hangup(self._reload):
                yield {SHED: self.shed, DIRECT: self.direct}
        finally:
            self.is_draining = True
            self.threads.close()
            for task in tasks:
                task.cancel()
            self.metrics.flush()
            for one in (*parts, self.store, self.user_routes, self.tracing):
                if one is not None:
                    await asyncio.to_thread(one.stop)

    def _tasks(self) -> Iterator[Coroutine[Any, Any, None]]:
        """Work on the event loop from start to end."""
        yield from (self._flush_metrics(), self._poll_keys(), self.status.keep_notes())
        if self.certificates is not None:
            yield self.certificates.keep_newest(self.settings.poll_seconds)
        if self.event_log is not None:
            yield self._poll_event_types()

    async def _flush_metrics(self) -> None:
        while True:
            self.metrics.set_worker_state(is_ready=self.unready_reason is None)
            self.metrics.connections.update(GuardedProtocol.shared)
            if self.certificates is not None:
                are_refused = self.certificates.error is not None
                self.metrics.set_certificate(self.certificates.expires_at, are_refused=are_refused)
            if self.clock.is_replaced:
                self.metrics.file_errors.labels("", "clock").set(self.clock.error is not None)
            self.metrics.flush()
            await asyncio.sleep(_FLUSH_SECONDS)

    async def _poll_keys(self) -> None:
        while True:
            await asyncio.to_thread(self.keys.poll)  # a file system that hangs may stop that thread, not requests
            self.metrics.file_errors.labels("", "keys").set(self.keys.error is not None)
            await asyncio.sleep(_KEYS_SECONDS)

    async def _poll_event_types(self) -> None:
        while True:
            await asyncio.to_thread(self.event_types.poll, list(self.store.served()))
            await asyncio.sleep(self.settings.poll_seconds)

    def _file_errors(self) -> list[str]:
        """Faults of files that belong to no single model."""
        keys = "the keys file is missing or refused; the keys before it are in force" if self.keys.error else None
        tls = self.certificates is not None and self.certificates.error and "TLS files are missing or refused"
        return [error for error in (self.store.folder_error, keys, tls) if error]

    def _reload(self) -> None:
        _log.info("SIGHUP: keys, certificates and models are read again")
        if self.certificates is not None:
            self.certificates.poll_soon()
        self.keys.read_again_soon()
        self.store.poll_soon()

    def _drain_on_signals(self) -> None:
        """Turn readiness off at the first SIGTERM or Ctrl-C, then let the server's own handler finish. After SIGTERM it
        waits, until balancers had time to send requests elsewhere or another signal comes."""
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)
            try:
                if callable(before):
                    signal.signal(number, partial(self._drain, asyncio.get_running_loop(), before))
            except ValueError:  # not the main thread: an in-process client, whose process keeps its own signals
                return

    def _drain(self, loop: asyncio.AbstractEventLoop, end: SignalHandler, number: int, frame: FrameType | None) -> None:
        is_first, self.is_leaving = not self.is_leaving, True
        seconds = self.settings.drain_seconds
        if is_first and self._is_open and seconds and number == signal.SIGTERM:
            loop.call_soon_threadsafe(loop.call_later, seconds, self._end_drain, end, number)
            return
        self.is_draining = True
        end(number, frame)

    def _end_drain(self, end: SignalHandler, number: int) -> None:
        if not self.is_draining:
            self.is_draining = True
            end(number, None)


def create_app(settings: Settings, certificates: Certificates | None = None) -> ASGIApp:
    """The application for one process. `certificates` are those of its server."""
    service = Service(settings, certificates)
    # /docs brings its own scripts: a service in a closed network has no CDN to load them from.
    app = FastAPIOffline(
        title="feedrank",
        version="1",
        description="Scores the candidates of a feed, one probability or quantity per output, and ranks them.",
        lifespan=service.lifespan,
        redoc_url=None,
        redirect_slashes=False,  # to where this service is for itself, not for those behind a proxy
    )
    app.router.routes.append(Route(EVENTS, _Application(service.events.take_request), methods=["POST"]))
    open_inference = OpenInference(
        service.ranking, service.responder.respond, lambda: service.unready_reason, app.title, app.version
    )
    app.include_router(open_inference.router())
    read_body = partial(read_plain_body, seconds=settings.body_seconds)
    for routes in (admin_routes, value_model_routes):
        app.include_router(routes(service.store, read_body, service.clock, record_of))
    app.include_router(service.user_routes.router())
    for path in (INFER, INFER_VERSION):
        app.router.routes.append(Route(path, _Application(open_inference.infer), methods=["POST"]))

    app.include_router(model_routes(service.store))
    app.include_router(schema_routes(service.store, settings.max_candidates))
    if settings.play == "on":
        app.router.routes += play_routes(service.ranking, service.responder, service.clock, settings)
    app.include_router(_plain_routes(service))
    for kind in (Problem, HTTPException, Exception):
        app.add_exception_handler(kind, _refuse)
    # Before FastAPI's own, which has neither the models nor the reader's key.
    app.router.routes.insert(0, Route("/openapi.json", _document_route(app, service), methods=["GET"]))

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        # Not a route: a framework costs more than the answer to a small request.
        is_rank = scope["type"] == "http" and scope["path"] in service.scorings
        await (service.rank if is_rank else app)(scope, receive, send)

    def address_of(scope: Scope) -> Address | None:
        scoring = service.scorings.get(scope["path"]) or open_inference.scoring_at(scope)
        events = service.events if scope["path"] == EVENTS else None
        return events if scoring is None else ScoringAddress(service.responder, scoring)

    observe = Observe(Authorize(application, service.keys, service.metrics), service.metrics, service.tracing)
    service.direct = DirectWay(service.keys, observe, service.metrics, settings.body_seconds, address_of)
    service.shed = Shedding(
        service.responder.wait_seconds, service.keys, observe, service.metrics, lambda: service.is_draining
    )
    return observe


def _plain_routes(service: Service) -> APIRouter:
    """Routes that read what there is: status, health, metrics."""
    router = APIRouter()
    router.add_api_route(STATUS, service.status.answer, include_in_schema=False)

    @router.get("/healthz", summary="The process is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @router.get("/readyz", summary="The process can score")
    async def readyz() -> dict[str, str]:
        reason = service.unready_reason
        if reason is not None:
            raise not_ready(reason)
        return {"status": "ready"}

    @router.get("/metrics", summary="Prometheus metrics of all workers", response_class=Response)
    def metrics() -> Response:
        service.metrics.set_worker_state(is_ready=service.unready_reason is None)
        service.metrics.connections.update(GuardedProtocol.shared)
        return Response(service.metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router


def _document_route(app: FastAPI, service: Service) -> Callable[[Request], Awaitable[Response]]:
    """The route of /openapi.json."""

    async def described(request: Request) -> Response:
        if app.openapi_schema is None:
            routes = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            app.openapi_schema = api_document(routes)
        may_score = service.keys.allows(header(request.scope, "Authorization"), "score")
        models = service.store.served() if may_score else {}
        document = with_models(app.openapi_schema, models, service.settings.max_candidates)
        return JSONResponse(document, headers={"Cache-Control": "no-store"})

    return described


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = Problem(error.status_code, str(error.detail), headers=error.headers)
    elif not isinstance(error, Problem):
        error = Problem(500, "an error of the service, not of the request; its log says more")
    return refusal(error, request.url.path, record_of(request.scope).request_id)


class _Application:
    """An ASGI function as an object: a function would be taken for one of a request that returns a response."""

    def __init__(self, function: ASGIApp) -> None:
        self._function = function

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._function(scope, receive, send)
