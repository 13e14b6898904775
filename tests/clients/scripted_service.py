"""A server that replies as a script says, on a port that the system chose.

In: replies, in the order of requests, the last one for all that follow. Out: the requests, with their times.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """A reply. Of status 0 the connection ends without one. One that `hangs` sends nothing until the server ends, one
    that `drips` a byte of its endless body each 10 ms."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = {}
    hangs: bool = False
    drips: bool = False


class Received(NamedTuple):
    """A request. `connection` is the client's port."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    connection: int
    time: float


ANSWER = Reply(
    200, json.dumps({"request_id": "of the server", "candidates": {"id": ["b", "a"], "score": [2, 1]}}).encode()
)
GONE = Reply(0)


class ScriptedService:
    """Use by `scripted`."""

    def __init__(self, replies: tuple[Reply, ...]) -> None:
        self.received: list[Received] = []
        self.ends = threading.Event()
        self._replies = list(replies)
        self._lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            """One connection."""

            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                request = Received(self.path, dict(self.headers), body, self.client_address[1], time.monotonic())
                service.reply(self, request)

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def reply(self, handler: BaseHTTPRequestHandler, request: Received) -> None:
        """Do what the script says."""
        with self._lock:
            self.received.append(request)
            reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        if reply.hangs:
            self.ends.wait()
        if reply.status == 0 or reply.hangs:
            handler.close_connection = True
            return
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(10**9 if reply.drips else len(reply.body)))
        handler.end_headers()
        handler.wfile.write(reply.body)
        try:
            while reply.drips and not self.ends.wait(0.01):
                handler.wfile.write(b" ")
        except OSError:  # the client has gone
            handler.close_connection = True


@contextmanager
def scripted(*replies: Reply) -> Iterator[ScriptedService]:
    """A running server."""
    service = ScriptedService(replies)
    thread = threading.Thread(target=service.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield service
    finally:
        service.ends.set()
        service.server.shutdown()
        thread.join()
        service.server.server_close()
