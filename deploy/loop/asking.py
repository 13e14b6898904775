"""Requests to a service by several connections that stay open: what a feed's backend does.

In: bodies of POST /v1/rank, or events. Out: the order in which each request's candidates were answered. What a busy
service sheds is sent again, under its request id. Any other refusal ends the run with the service's own words.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from threading import local
from time import monotonic, sleep
from typing import Any, TypeVar

CONNECTIONS = 4
EVENTS_TOGETHER = 500
_TIMEOUT_SECONDS = 120.0
# Of a service that shares its cores with the jobs of a night. Its sheds say to come again after a second or less.
_BUSY, _BUSY_SECONDS, _AGAIN_SECONDS = (429, 503), 120.0, 0.2
_Document = TypeVar("_Document")


class RefusedError(Exception):
    """An answer of the service other than the one that is due."""


class Backend:
    """A client of one service, for one model. Use as a context manager."""

    def __init__(self, port: int, model: str, key: str | None = None) -> None:
        self.model = model
        self._port = port
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._pool = ThreadPoolExecutor(CONNECTIONS)
        self._local = local()
        self._connections: list[HTTPConnection] = []

    def __enter__(self) -> "Backend":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        for connection in self._connections:
            connection.close()

    def rank(self, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The answers to requests, in their order. Raises RefusedError."""
        return self._each(lambda body: self.send("POST", "/v1/rank", body), bodies)

    def send_events(self, events: Sequence[dict[str, Any]]) -> None:
        """Send events, several in a body. Raises RefusedError."""
        batches = [events[start : start + EVENTS_TOGETHER] for start in range(0, len(events), EVENTS_TOGETHER)]
        self._each(lambda batch: self.send("POST", "/v1/events", {"events": batch}, 202), batches)

    def user_state(self, user: int) -> dict[str, Any]:
        """Fields and histories of a user. Raises RefusedError."""
        state: dict[str, Any] = self.send("GET", f"/v1/models/{self.model}/users/{user}")
        return state

    def send(self, method: str, path: str, document: Any = None, status: int = 200) -> Any:
        """The JSON of one answer. Raises RefusedError."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_SECONDS)
            self._connections.append(connection)
        body = None if document is None else json.dumps(document).encode()
        deadline = monotonic() + _BUSY_SECONDS
        while True:
            try:
                found, content = self._answer(connection, method, path, body)
            except ConnectionError:
                # The service closes what has been idle for long, as over a night. The next request opens it again.
                connection.close()
                found, content = self._answer(connection, method, path, body)
            if found == status:
                return json.loads(content)
            if found not in _BUSY or monotonic() > deadline:
                raise RefusedError(f"{method} {path}: {found} {content[:500].decode(errors='replace')}")
            sleep(_AGAIN_SECONDS)

    def _answer(self, connection: HTTPConnection, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        connection.request(method, path, body, self._headers)
        response = connection.getresponse()
        return response.status, response.read()

    def _each(self, send: Callable[[_Document], Any], documents: Sequence[_Document]) -> list[Any]:
        return list(self._pool.map(send, documents))
