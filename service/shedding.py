"""The cheapest way to say no: a scoring request for which there is no room is answered from its headers alone.

In: the scope of a request, before it becomes one of the application. Out: the bytes of a 429, or None for what goes the
usual way (and may be refused there). Beyond capacity most requests end here, and what each of them costs is taken from
those that are answered.
"""

from collections.abc import Callable

from starlette.types import Scope

from service.admission import Admission
from service.errors import Problem, refusal
from service.keys import Keys
from service.metrics import SCORING, Metrics
from service.observe import REQUEST_ID, Observe, content_length, header, new_record


class Shedding:
    """Counts and logs what it refuses as the usual way does; `is_leaving` says that other refusals come before."""

    def __init__(
        self, admission: Admission, keys: Keys, observe: Observe, metrics: Metrics, is_leaving: Callable[[], bool]
    ) -> None:
        self._admission = admission
        self._keys = keys
        self._observe = observe
        self._shed = metrics.rejected.labels("shed")
        self._is_leaving = is_leaving

    def __call__(self, scope: Scope) -> bytes | None:
        """The answer to a POST with the `path` and `headers` of `scope`, None where it is not refused here."""
        try:
            self._admission.check(content_length(scope))
        except Problem as problem:
            busy = problem
        else:
            return None
        record = new_record(scope)
        if record.endpoint not in SCORING or self._is_leaving():
            return None
        try:
            record.key = self._keys.check(header(scope, "Authorization"), "score")
        except Problem:
            return None
        record.status = busy.status
        response = refusal(busy, scope["path"], record.request_id)
        self._shed.inc()
        self._observe.finish(record, scope)
        headers = [*response.raw_headers, (REQUEST_ID.encode("ascii"), record.request_id.encode("latin-1"))]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        return b"HTTP/1.1 429 Too Many Requests\r\n%b\r\n%b" % (lines, bytes(response.body))
