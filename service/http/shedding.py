"""The cheapest way to say no: a scoring request for which there is no room is answered from its headers alone.

In: the scope of a request, before it becomes one of the application. Out: the bytes of a 429, or None for what goes the
usual way (and may be refused there). Beyond capacity most requests end here, and what each of them costs is taken from
those that are answered.
"""

from collections.abc import Callable
from functools import lru_cache

import msgspec
from starlette.types import Scope

from service.base.errors import Problem, refusal
from service.http.admission import busy
from service.http.keys import Keys
from service.http.middleware import REQUEST_ID, Observe, header, new_record
from service.metrics.metrics import SCORING, Metrics

# In place of a request's id until there is one. It is in no other part of an answer.
_ANY_ID = "<id>"


class Shedding:
    """Counts and logs what it refuses as the usual way does. `is_leaving` says that other refusals come first."""

    def __init__(
        self,
        wait_seconds: Callable[[Scope], int | None],
        keys: Keys,
        observe: Observe,
        metrics: Metrics,
        is_leaving: Callable[[], bool],
    ) -> None:
        self._wait_seconds = wait_seconds
        self._keys = keys
        self._observe = observe
        self._shed = metrics.rejected.labels("shed")
        self._is_leaving = is_leaving

    def __call__(self, scope: Scope) -> bytes | None:
        """The answer to a POST with the `path` and `headers` of `scope`, None where it is not refused here."""
        seconds = self._wait_seconds(scope)
        if seconds is None:
            return None
        record = new_record(scope)
        if record.endpoint not in SCORING or self._is_leaving():
            return None
        try:
            record.key = self._keys.check(header(scope, "Authorization"), "score")
        except Problem:
            return None
        record.status = 429
        self._shed.inc()
        self._observe.finish(record, scope)
        lines, parts = _answer(record.endpoint, seconds)
        body = msgspec.json.encode(record.request_id)[1:-1].join(parts)
        return lines % (len(body), record.request_id.encode("ascii")) + body


@lru_cache(maxsize=256)
def _answer(endpoint: str, seconds: int) -> tuple[bytes, list[bytes]]:
    """Common part of all refusals of an endpoint with the same wait. It is the lines before the body, with places for
    its length and the request's id, and the body around that id."""
    response = refusal(busy(seconds), endpoint, _ANY_ID)
    lines = [b"HTTP/1.1 429 Too Many Requests"]
    lines += [b"%b: %b" % header for header in response.raw_headers if header[0] != b"content-length"]
    lines += [b"content-length: %d", REQUEST_ID.encode("ascii") + b": %b", b"", b""]
    return b"\r\n".join(lines), bytes(response.body).split(_ANY_ID.encode("ascii"))
