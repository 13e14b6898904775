"""Routes of the page at /play.

In: the files beside this module, the store, and the scoring of trials. Out: the shell, which is open and says nothing
of any model, and the data behind it, which need the scope `play` where keys are configured. The page loads nothing
from other hosts, and its policy lets it.
"""

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from service.base.clock import Clock
from service.http.body import read_plain_body
from service.pipeline import Ranking
from service.play.comparison import PATH as LOGGED
from service.play.comparison import read_comparison
from service.play.one_job import OneJob
from service.play.shown_models import PATH, shown_models
from service.play.trial import PATH as RANK
from service.play.trial import Trials
from service.responder import Responder
from service.settings import Settings

PAGE = "/play"
_FOLDER = Path(__file__).parent / "static"
_SHELL = "play.html"
MAX_BODY_BYTES = 64 * 1024
_DIGITS = 32
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def play_routes(ranking: Ranking, responder: Responder, clock: Clock, settings: Settings) -> list[BaseRoute]:
    """The shell, the files that it loads, read once, and its data. These are the page's own, and change with it."""
    router, job = APIRouter(), OneJob(ranking.metrics.folder)
    options = {"has_keys": settings.keys_file is not None, "has_log": settings.impression_log is not None}

    @router.get(PATH, include_in_schema=False)
    def models() -> dict[str, Any]:
        return {"models": shown_models(ranking.store), **options}

    @router.post(LOGGED, include_in_schema=False)
    async def logged(request: Request) -> dict[str, Any]:
        body = await read_plain_body(request.scope, request.receive, MAX_BODY_BYTES, responder.body_seconds)
        return await job.run(read_comparison(body, ranking.store, settings.impression_log).run)

    files = sorted(_FOLDER.iterdir())
    shell = [Route(PAGE if file.name == _SHELL else f"{PAGE}/{file.name}", _sender(file)) for file in files]
    trials = Route(RANK, _TrialRoute(Trials(ranking, clock), responder), methods=["POST"])
    return [*shell, *router.routes, trials]


def _sender(file: Path) -> Callable[[Request], Awaitable[Response]]:
    content, media_type = file.read_bytes(), f"{_MEDIA_TYPES[file.suffix]}; charset=utf-8"
    tag = f'"{hashlib.sha256(content).hexdigest()[:_DIGITS]}"'
    headers = {**_HEADERS, "ETag": tag}

    async def send(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return send


class _TrialRoute:
    """POST /v1/play/rank, an ASGI application."""

    def __init__(self, trials: Trials, responder: Responder) -> None:
        self._scoring = trials.scoring
        self._responder = responder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        await self._responder.respond(scope, receive, send, self._scoring)
