"""The record of one request, from its first byte until its answer has left.

Logged of it are identifiers (of a key its name), counts, seconds and a status. Never a feature value, a user or a
candidate id.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from service.base.log import LogLine

MAX_REQUEST_ID = 128


class Ticket(Protocol):
    """Admission of a request, as far as its record needs it (service/http/admission.py)."""

    def set_candidates(self, candidates: int, requests: int) -> None:
        """The body is parsed, and has this many candidates of so many requests."""


class UserLookup(Protocol):
    """Look-up of a user, as far as its record needs it (service/state/lookups.py)."""

    result: str | None


@dataclass(slots=True)
class RequestRecord:
    """Record of one request while it runs."""

    request_id: str
    endpoint: str
    key: str | None = None
    started: float = field(default_factory=time.perf_counter)
    status: int = 500
    model: str | None = None
    model_version: str | None = None
    value_model: str | None = None
    value_model_version: str | None = None
    policy: str | None = None
    policy_version: str | None = None
    calibration: str | None = None
    # The arm by experiment, and the experiments whose arm could not answer.
    experiments: Mapping[str, str] = field(default_factory=dict)
    fell_back: tuple[str, ...] = ()
    candidates: int | None = None
    ticket: Ticket | None = None
    # The look-up of the user, begun before the body is parsed, and replaced where that guessed another.
    lookup: UserLookup | None = None
    # The trace that the client's traceparent names, or the one that was begun here.
    trace_id: str | None = None
    # Handed to the scoring threads, taken up by one, answered by it, all on the clock of `started`.
    submitted: float | None = None
    begun: float | None = None
    scored: float | None = None
    seconds: float = 0.0
    ended: float = 0.0  # Unix time
    # Of a request in a batch, the id of that. Of a batch that is answered, its requests.
    batch: str | None = None
    parts: list["RequestRecord"] = field(default_factory=list)
    # What has to be known before anybody can have the answer.
    before_answer: list[Callable[[], None]] = field(default_factory=list)
    # Counts the scores of a request that was scored, when it is over.
    count_scores: Callable[[], None] | None = None
    # Work that waits until the answer has left: a line of the impression log, a scoring by the shadow version.
    after_answer: list[Callable[[], None]] = field(default_factory=list)

    def run_before_answer(self) -> None:
        """Do what comes before the answer leaves."""
        waiting, self.before_answer = self.before_answer, []
        for act in waiting:
            act()
        for part in self.parts:
            part.run_before_answer()

    def run_after_answer(self) -> None:
        """Do what waited for the answer to leave. It may refer to this record: kept here, only the collector would free
        either."""
        waiting, self.after_answer = self.after_answer, []
        for act in waiting:
            act()
        for part in self.parts:
            part.run_after_answer()

    def count_candidates(self, count: int, requests: int = 1) -> None:
        """The body is parsed: the work that was guessed is known."""
        self.candidates = count
        if self.ticket is not None:
            self.ticket.set_candidates(count, requests)

    def end(self) -> None:
        """The request is over."""
        self.seconds = time.perf_counter() - self.started
        self.ended = time.time()

    def line(self) -> LogLine:
        """The request's log line."""
        fields = {
            "request_id": self.request_id,
            "batch": self.batch,
            "trace_id": self.trace_id,
            "endpoint": self.endpoint,
            "key": self.key,
            "status": self.status,
            "seconds": round(self.seconds, 6),
            "model": self.model,
            "model_version": self.model_version,
            "value_model": self.value_model,
            "value_model_version": self.value_model_version,
            "policy": self.policy,
            "policy_version": self.policy_version,
            "calibration": self.calibration,
            "experiments": self.experiments or None,
            "fell_back": self.fell_back or None,
            "candidates": self.candidates,
            "requests": len(self.parts) or None,
            "state": None if self.lookup is None else self.lookup.result,
        }
        return self.ended, {name: value for name, value in fields.items() if value is not None}


def is_request_id(given: object) -> bool:
    """True for a text that can be echoed in a header and a log line."""
    if not isinstance(given, str) or len(given) > MAX_REQUEST_ID:
        return False
    return given.isascii() and given.isprintable() and given.strip(" ") != ""
