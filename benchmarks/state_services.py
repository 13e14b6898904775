"""Parts of the benchmark of users by id: services with a state store, their Redis, their users and requests.

In: a folder. Out: a model with state.yaml, services on one core, a Redis on the others, and requests in which a user's
features stand, or the user's key alone.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis import Redis, exceptions

from benchmarks.reference_feed import NETWORK, SCHEMA, columnar_request
from benchmarks.serving_processes import CLIENT_CORES, SERVER_CORES, Server, free_port, serve
from benchmarks.wires import tensors_message
from deploy.open_loop import message
from service.state.store import Written
from service.state.stores import open_store
from service.state.user_state import Entry, UserState, store_name
from tests.artifacts import publish_artifact

CANDIDATES = 100
USERS = 50
NAME = "reference"
KEY = "visitor"
HISTORY, ITEM = "user_list_0", "candidate_0"
_TTL_SECONDS = 86_400.0


class RedisProcess:
    """A Redis server on the cores of the clients."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = ["taskset", "-c", ",".join(map(str, sorted(CLIENT_CORES))), "redis-server"]
        self._command += ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        self.process = self._started()

    def _started(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        with Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                    return process
                except exceptions.RedisError:
                    time.sleep(0.02)

    def kill(self) -> None:
        """Kill it, with all that it has."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Kill it and start another on its port."""
        self.kill()
        self.process = self._started()


def publish(folder: Path) -> None:
    """A version of the reference model, and the state.yaml of its users beside it."""
    published = publish_artifact(folder / "models", NAME, schema=SCHEMA, network=NETWORK, request=_request(0))
    user = [feature.name for feature in SCHEMA.requested("request") if feature.side == "user"]
    fields = [name for name in user if name != HISTORY]
    append = f"{{{HISTORY}: {{event: click, value: {ITEM}, keep: 10}}}}"
    state = f"key: {KEY}\nfields: [{', '.join(fields)}]\nappend: {append}\n"
    (published.parent / "state.yaml").write_text(state)


def put_users(url: str) -> None:
    """The users of the requests, in a store."""
    store = open_store(url, 5.0)
    for seed in range(USERS):
        values = {name: value for name, value in _request(seed)["user"].items() if _is_of_user(name)}
        entries = [Entry(value, float(n)) for n, value in enumerate(values.pop(HISTORY))]
        name = store_name(NAME, str(seed))
        blob = UserState(values, {HISTORY: entries}).encoded()
        store.change([name], lambda _, name=name, blob=blob: {name: Written(blob, _TTL_SECONDS)})  # type: ignore[misc]
    store.close()


def messages(url: str, *, by_id: bool, is_v2: bool = False) -> list[bytes]:
    """A request of each user, in which either the user's features or the user's key stands, on either wire."""
    requests = []
    for seed in range(USERS):
        request = _request(seed)
        if by_id:
            context = {name: value for name, value in request["user"].items() if not _is_of_user(name)}
            request["user"] = {KEY: seed, **context}
        requests.append(request)
    if is_v2:
        return [tensors_message(url, request) for request in requests]
    return [message(url, "/v1/rank", json.dumps(request).encode()) for request in requests]


@contextmanager
def service(folder: Path, name: str, url: str, *flags: str, workers: int = 1) -> Iterator[Server]:
    """A service with the state store of a URL, and an event log of its own."""
    port = free_port()
    (folder / name).mkdir(exist_ok=True)
    command = [sys.executable, "-m", "service", "--models", str(folder / "models"), "--port", str(port)]
    command += ["--threads", "1", "--workers", str(workers), "--event-log", str(folder / name), "--state", url, *flags]
    with serve(command, "/readyz", port, folder / f"{name}.log", SERVER_CORES) as server:
        yield server


def _request(seed: int) -> dict[str, Any]:
    return columnar_request(CANDIDATES, seed)


def _is_of_user(name: str) -> bool:
    return any(feature.name == name and feature.side == "user" for feature in SCHEMA.features)
