"""Refusals: every answer that is not a score is an RFC 9457 problem, `application/problem+json`. Under /v2 it is the
error of the Open Inference Protocol.

In: a `Problem` raised anywhere on the way. Out: its response. Faults name their place by a path into the request body
(`user.tab`, `candidates.features.duration_ms[3]`) and the rule, never the value: features stay out of logs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"
FAULTS_SHOWN = 20
_NAME_SHOWN = 60
_MOST_BITS = 64
_OPEN_INFERENCE = "/v2"

_TITLES = {
    400: ("not-json", "The body is not JSON"),
    401: ("no-key", "A key is needed"),
    403: ("wrong-scope", "This is not allowed"),
    404: ("not-found", "There is no such thing"),
    405: ("method-not-allowed", "The method does not fit this address"),
    408: ("too-slow", "The request took too long to arrive"),
    409: ("conflict", "The service cannot do this as things stand"),
    412: ("changed-meanwhile", "What is to be changed is not as it was seen"),
    413: ("too-large", "The request is over a limit"),
    415: ("encoding-not-supported", "The body is encoded in a way that is not read"),
    422: ("wrong-content", "The content of the request is wrong"),
    428: ("precondition-needed", "The request must say what it was made for"),
    429: ("busy", "The service is busy"),
    500: ("internal-error", "The service failed"),
    503: ("not-ready", "The service cannot score now"),
    504: ("deadline-passed", "The deadline has passed"),
}


class Fault(NamedTuple):
    """One fault of a request: a path into its body (`$` is the whole) and what is wrong there."""

    path: str
    message: str


class Problem(Exception):
    """A refusal. `reason` counts it in ranking_requests_rejected_total where the service, not the content, refuses.
    `retry_after` are the seconds after which the client may try again."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        faults: Sequence[Fault] = (),
        reason: str | None = None,
        headers: Mapping[str, str] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.faults = tuple(faults)
        self.reason = reason
        self.retry_after = retry_after
        self.headers = {**(headers or {}), **({} if retry_after is None else {"Retry-After": str(retry_after)})}

    @classmethod
    def wrong_content(cls, faults: Sequence[Fault]) -> "Problem":
        """422 with every fault found, the first ones shown."""
        first = faults[0]
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        return cls(422, f"{first.path}: {first.message}{more}", faults=faults[:FAULTS_SHOWN])


def shown(name: str) -> str:
    """A name that came from outside, cut to a length and to characters fit for a log line."""
    printable = "".join(c if c.isprintable() else "?" for c in name[:_NAME_SHOWN])
    return (printable + "..." if len(name) > _NAME_SHOWN else printable) or "''"


def value_or_kind(value: object) -> str:
    """A parameter as a refusal names it: its value where that is short, otherwise its kind. Never for values of
    features, which are a user's own."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() if value.bit_length() > _MOST_BITS:
            return "an integer beyond 64 bits"
        case int() | float():
            return str(value)
        case str():
            return f"'{shown(value)}'" if value else "''"
    return kind_of(value)


def kind_of(value: object) -> str:
    """Name of a JSON value's type."""
    if isinstance(value, bool):
        return "true or false"
    names = {str: "a string", int: "an integer", float: "a fraction", list: "a list", dict: "an object"}
    return names.get(type(value), "null")


def refusal(problem: Problem, path: str, request_id: str) -> Response:
    """The response with `problem` for a client of the address `path`."""
    if path == _OPEN_INFERENCE or path.startswith(f"{_OPEN_INFERENCE}/"):
        return _open_inference_error(problem)
    return problem_response(problem, request_id)


def _open_inference_error(problem: Problem) -> Response:
    """The protocol's error object. It has no 422, and a list of faults only as text."""
    faults = [f"{fault.path}: {fault.message}" for fault in problem.faults]
    return Response(
        msgspec.json.encode({"error": "; ".join(faults) if len(faults) > 1 else problem.detail}),
        status_code=400 if problem.status == 422 else problem.status,
        headers=problem.headers,
        media_type="application/json",
    )


def problem_response(problem: Problem, request_id: str) -> Response:
    """The response with `problem`."""
    slug, title = _TITLES.get(problem.status, ("refused", "The request was refused"))
    content: dict[str, Any] = {
        "type": f"urn:feedrank:problem:{slug}",
        "title": title,
        "status": problem.status,
        "detail": problem.detail,
        "request_id": request_id,
    }
    if problem.faults:
        content["errors"] = [fault._asdict() for fault in problem.faults]
    if problem.retry_after is not None:  # in the body too: a problem in a batch has no headers
        content["retry_after"] = problem.retry_after
    return Response(
        msgspec.json.encode(content), status_code=problem.status, headers=problem.headers, media_type=MEDIA_TYPE
    )
