"""Asks for a key before anything of a request is read.

In: any ASGI application and the keys. Out: the same, behind them. A path that only reports needs no key: health checks
and the description of the API.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from service.base.errors import Problem
from service.http.keys import BROWSER_CHALLENGE, STATUS, Keys, from_browser, needed_for
from service.http.middleware import header, record_of, send_problem
from service.metrics.metrics import Metrics


class Authorize:
    """Wraps `app`: a request gets through with a key for its path, and is refused before its body is read."""

    def __init__(self, app: ASGIApp, keys: Keys, metrics: Metrics) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        needed = needed_for(scope["path"]) if scope["type"] == "http" else None
        if needed is not None:
            try:
                given = header(scope, "Authorization")
                record_of(scope).key = self._keys.check(
                    from_browser(given) if scope["path"] == STATUS else given, needed
                )
            except Problem as problem:
                if problem.status == 401 and scope["path"] == STATUS:
                    problem.headers = BROWSER_CHALLENGE
                await send_problem(problem, scope, receive, send, self._metrics)
                return
        await self._app(scope, receive, send)
