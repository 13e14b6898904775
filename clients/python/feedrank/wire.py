"""Requests, rankings and events as a caller has them, their JSON, and the errors of a call."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict


class Columns(TypedDict):
    """Candidates as columns: ids, and a value of each feature for every one. This shape costs least."""

    id: Sequence[str]
    features: NotRequired[Mapping[str, Sequence[Any]]]


class Row(TypedDict):
    """A candidate as a row."""

    id: str
    features: NotRequired[Mapping[str, Any]]


class RankRequest(TypedDict):
    """Body of POST /v1/rank. The client adds `request_id`, and `strict` where it is strict."""

    user: Mapping[str, Any]
    candidates: Columns | Sequence[Row]
    request_id: NotRequired[str]
    model: NotRequired[str]
    version: NotRequired[str]
    value_model: NotRequired[str]
    policy: NotRequired[str]
    top_k: NotRequired[int]
    explain: NotRequired[bool]
    strict: NotRequired[bool]


class Event(TypedDict):
    """One action of a user. The client adds `time` and `event_id`. Features of the model may be given by their names,
    for which a plain dict is taken."""

    request_id: str
    type: str
    id: str
    position: NotRequired[int]
    value: NotRequired[float]
    user: NotRequired[int | str]
    time: NotRequired[str]
    event_id: NotRequired[str]
    model: NotRequired[str]


@dataclass(frozen=True)
class Ranking:
    """Candidate ids, best first. `answer` is the service's whole answer, None where `ids` are the caller's fallback.
    `reason` then says why."""

    ids: list[str]
    request_id: str
    answer: dict[str, Any] | None
    reason: str | None = None

    @property
    def is_fallback(self) -> bool:
        """True where the service has not answered and `ids` are the caller's."""
        return self.answer is None


class UnavailableError(Exception):
    """No answer within the deadline, and no fallback was given. `reason` is one of the keys of `Counts.reasons`."""

    def __init__(self, request_id: str, reason: str) -> None:
        super().__init__(f"no ranking of request {request_id}: {reason}; give `fallback` to have one")
        self.request_id = request_id
        self.reason = reason


class RefusedError(Exception):
    """A request that the service refuses as it is, such as 401, 404 or 422. `faults` are paths and rules."""

    def __init__(self, request_id: str, status: int, detail: str, faults: list[tuple[str, str]]) -> None:
        said = "".join(f"\n  {path}: {message}" for path, message in faults) or f" {detail}"
        super().__init__(f"request {request_id} is refused ({status}):{said}")
        self.request_id = request_id
        self.status = status
        self.detail = detail
        self.faults = faults


def _plain(value: Any) -> Any:
    """Arrays and scalars of numpy as lists and numbers of Python."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise ValueError(f"a {type(value).__name__} is no JSON; give str, int, float, bool, None, lists and dicts of these")


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)


def encode(document: Mapping[str, Any]) -> bytes:
    """Compact JSON. An int stays whole, whatever its size. Raises ValueError for NaN, infinity and what is no JSON."""
    return _encoder.encode(document).encode()


def decode(content: bytes) -> dict[str, Any]:
    """A JSON object, or an empty one where the bytes are something else, such as a page of a proxy."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def ranked_ids(answer: Mapping[str, Any]) -> list[str] | None:
    """The ids of an answer in its order, of either shape. None where it is no answer of /v1/rank."""
    candidates = answer.get("candidates")
    if isinstance(candidates, dict):
        ids = candidates.get("id")
    elif isinstance(candidates, list):
        ids = [row.get("id") if isinstance(row, dict) else None for row in candidates]
    else:
        return None
    return ids if isinstance(ids, list) and all(isinstance(one, str) for one in ids) else None


def answers_of(batch: Mapping[str, Any], number: int) -> list[dict[str, Any]] | None:
    """So many answers and problems of a batch, in its order. None where it has not these."""
    answers = batch.get("answers")
    if not isinstance(answers, list) or len(answers) != number:
        return None
    return [answer if isinstance(answer, dict) else {} for answer in answers]


def faults_of(problem: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Paths and messages of a problem's faults (RFC 9457)."""
    errors = problem.get("errors")
    listed = errors if isinstance(errors, list) else []
    return [(str(one.get("path")), str(one.get("message"))) for one in listed if isinstance(one, dict)]
