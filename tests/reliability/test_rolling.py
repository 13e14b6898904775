"""Instances that are replaced one after the other under load, behind a proxy that sends nothing to an unready one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import httpx

from tests.artifacts import publish_artifact
from tests.reliability.load import BROKEN, Load, Truth, ask
from tests.reliability.sizes import SIZES
from tests.service.running import RunningService

LOOK_SECONDS = 0.05
# Far beyond LOOK_SECONDS: a busy machine may delay a look.
DRAIN_SECONDS = "2"


class Proxy:
    """Passes requests on in turn. It has no second try: what an instance fails, the client sees."""

    def __init__(self) -> None:
        self.instances: list[RunningService] = []
        self.ready: list[RunningService] = []
        self._turn = count()
        self._stop = threading.Event()

    def pass_on(self, body: bytes) -> tuple[int, bytes]:
        ready = self.ready
        url = ready[next(self._turn) % len(ready)].client.base_url
        answer = ask((url.host, url.port), body)
        return (502 if answer.status == BROKEN else answer.status), answer.body

    def look(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            self.ready = [instance for instance in self.instances if _is_ready(instance)] or self.ready

    @contextmanager
    def running(self) -> Iterator[httpx.URL]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                status, body = proxy.pass_on(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threads = [threading.Thread(target=work, daemon=True) for work in (server.serve_forever, self.look)]
            for thread in threads:
                thread.start()
            try:
                yield httpx.URL(f"http://127.0.0.1:{server.server_port}")
            finally:
                self._stop.set()
                server.shutdown()
                for thread in threads:
                    thread.join()


def _is_ready(instance: RunningService) -> bool:
    try:
        url = f"{instance.client.base_url}/readyz"
        return httpx.get(url, timeout=30, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_no_request_fails_while_instances_are_replaced(tmp_path: Path) -> None:
    truth = Truth(publish_artifact(tmp_path))
    proxy = Proxy()
    with ExitStack() as stack:

        def started() -> RunningService:
            flags = ("--threads", "1", "--drain-seconds", DRAIN_SECONDS)
            return stack.enter_context(RunningService(tmp_path, *flags)).wait_ready()

        proxy.instances = [started()]
        proxy.ready = list(proxy.instances)
        load = stack.enter_context(Load(stack.enter_context(proxy.running()), clients=3))
        for _ in range(SIZES.rolls):
            old, new = proxy.instances[0], started()
            proxy.instances = [old, new]
            new.wait_for(lambda new=new: new in proxy.ready)  # type: ignore[misc]
            load.wait_for_more(10)
            assert old.stop(signal.SIGTERM) == 0
            proxy.instances = [new]
            load.wait_for_more(10)
        assert {answer.status for answer in load.answers} == {200}
        assert {truth.check(answer) for answer in load.answers} == {"1"}
