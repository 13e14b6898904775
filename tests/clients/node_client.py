"""The TypeScript client in a process of Node, with the face of the Python ones."""

import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest

from feedrank import Counts, Ranking, RefusedError, UnavailableError
from tests.deploy.programs import program
from tests.service.running import ROOT

MODULE = ROOT / "clients/typescript/feedrank.js"
DRIVER = ROOT / "tests/clients/node_driver.mjs"
_OPTIONS = {"most_events": "mostEvents", "flush_seconds": "flushMs"}
_COUNTS = {
    "over_budget": "overBudget",
    "events_accepted": "eventsAccepted",
    "events_dropped": "eventsDropped",
    "events_refused": "eventsRefused",
    "events_waiting": "eventsWaiting",
}


@cache
def _version(path: str) -> tuple[int, ...]:
    said = subprocess.run([path, "--version"], check=True, capture_output=True, text=True).stdout
    return tuple(map(int, said.strip().removeprefix("v").split(".")))


def node() -> str:
    """The path of node. Skips where there is none, or one that is older than the client's package.json says."""
    path = program("node", "nodejs")
    if _version(path) < (18, 17):
        pytest.skip("the TypeScript client needs Node 18.17")
    return path


class NodeClient:
    """A Client of feedrank.js. Skips where there is no node for it."""

    def __init__(self, url: str, **options: Any) -> None:
        given = {_OPTIONS.get(name, name): value for name, value in options.items()}
        if "flushMs" in given:
            given["flushMs"] *= 1000
        command = [node(), str(DRIVER), str(MODULE), url, json.dumps(given)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def rank(
        self, request: Mapping[str, Any], *, timeout: float | None = None, fallback: Sequence[str] | None = None
    ) -> Ranking:
        """Rank."""
        options: dict[str, Any] = {} if timeout is None else {"timeoutMs": 1000 * timeout}
        return _ranking(self.call("rank", request, options if fallback is None else {**options, "fallback": fallback}))

    def rank_batch(
        self,
        requests: Sequence[Mapping[str, Any]],
        *,
        timeout: float | None = None,
        fallbacks: Sequence[Sequence[str] | None] | None = None,
    ) -> list[Ranking | RefusedError | UnavailableError]:
        """Rank several."""
        options: dict[str, Any] = {} if timeout is None else {"timeoutMs": 1000 * timeout}
        replies = self.call(
            "rankBatch", requests, options if fallbacks is None else {**options, "fallbacks": fallbacks}
        )
        return [_error(reply) or _ranking(reply) for reply in replies]

    def event(self, event: Mapping[str, Any]) -> bool:
        """Send an event soon."""
        return bool(self.call("event", event))

    def counts(self) -> Counts:
        """Counts so far."""
        counts = self.call("counts")
        return Counts(**{name: counts[_COUNTS.get(name, name)] for name in Counts.__dataclass_fields__})

    def close(self, timeout: float = 5.0) -> None:
        """Send what waits, and end the process."""
        if self._process.poll() is None:
            self.call("close", 1000 * timeout)
            self.end()

    def end(self) -> None:
        """End the process, which then has nothing to do."""
        with self._process:
            self._process.communicate(timeout=60)
        assert self._process.returncode == 0

    def call(self, method: str, *given: Any) -> Any:
        """What a method returns. Raises what it throws."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([method, *map(_whole, given)]), file=self._process.stdin, flush=True)
        reply = json.loads(self._process.stdout.readline())
        if "error" not in reply:
            return reply["value"]
        raise _error(reply) or ValueError(reply["message"])


def _ranking(reply: Mapping[str, Any]) -> Ranking:
    return Ranking(reply["ids"], reply["requestId"], reply.get("answer"), reply.get("reason"))


def _error(reply: Mapping[str, Any]) -> RefusedError | UnavailableError | None:
    """An error of the client, None for anything else."""
    if reply.get("error") == "RefusedError":
        faults = [(path, message) for path, message in reply["faults"]]
        return RefusedError(reply["requestId"], reply["status"], reply["detail"], faults)
    if reply.get("error") == "UnavailableError":
        return UnavailableError(reply["requestId"], reply["reason"])
    return None


def _whole(value: Any) -> Any:
    """The value, with marks for what JSON has no numbers for in JavaScript."""
    if isinstance(value, Mapping):
        return {key: _whole(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_whole(one) for one in value]
    if isinstance(value, float) and math.isinf(value):
        return {"number": "Infinity"}
    is_beyond = isinstance(value, int) and abs(value) >= 2**53
    return {"bigint": str(value)} if is_beyond else value
