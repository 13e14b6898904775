"""Connections of one process together: how many there are, and the bytes of requests that are not whole.

In: a bound on each. Out: which connection has to give way. Where there are too many, those that are idle longest end,
and where none is idle the new one does. Where unfinished requests take too much memory, the largest gives way, so
that a client with a small request loses nothing to one with a large one. `ends` counts connections that the service
ends by itself, by reason. service/metrics/connection_metrics.py collects it.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

_STATUS = {
    "not_http": "400 Bad Request",
    "ended_early": "400 Bad Request",
    "slow_headers": "408 Request Timeout",
    "large_headers": "431 Request Header Fields Too Large",
    "pipelined": "429 Too Many Requests",
    "no_room": "429 Too Many Requests",
    "connections": "503 Service Unavailable",
}
_ANSWER = (
    "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {length}\r\n"
    "connection: close\r\n\r\n{text}"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds from the first byte of a request to the end of its headers, and their size in bytes. Trailers have as
    much again."""

    header_seconds: float = 10.0
    header_bytes: int = 32 * 1024


class Holder(Protocol):
    """A connection whose request is not whole."""

    held_bytes: int

    def give_way(self) -> None:
        """Release its share."""


class Connections:
    """Connections of one process, whose event loop alone uses them. `held_bytes` may be over its bound by one read of a
    socket."""

    def __init__(self, most: int = 4096, most_held_bytes: int = 128 * 1024 * 1024) -> None:
        self.most = most
        self.most_held_bytes = most_held_bytes
        self.open = 0
        self.held_bytes = 0
        self.ends: Counter[str] = Counter()
        self._holders: set[Holder] = set()

    def hold_bytes(self, holder: Holder, size: int) -> None:
        """Add bytes of an unfinished request."""
        self._holders.add(holder)
        holder.held_bytes += size
        self.held_bytes += size
        while self.held_bytes > self.most_held_bytes:
            greatest = max(self._holders, key=lambda one: one.held_bytes)
            greatest.give_way()
            self.release(greatest)

    def release(self, holder: Holder) -> None:
        """End of a connection's unfinished request: it is whole, refused, or gone."""
        self.held_bytes -= holder.held_bytes
        holder.held_bytes = 0
        self._holders.discard(holder)

    def take_ends(self) -> dict[str, int]:
        """Connections that were ended since the last call, by reason."""
        ends, self.ends = self.ends, Counter()
        return dict(ends)


def status_of(reason: str) -> int:
    """Status of a request in the metrics when the service ended its connection. It is that of the answer, but 499 where
    it ended early: few of those clients are there to read one."""
    return 499 if reason == "ended_early" else int(_STATUS[reason][:3])


def final_answer(reason: str, text: str) -> bytes:
    """The answer to a client whose connection ends for a reason."""
    return _ANSWER.format(status=_STATUS[reason], length=len(text), text=text).encode("ascii")
