"""Metrics of connections: how many are open, the bytes of their unfinished requests, and which the service has
ended."""

from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge

from service.metrics.family import Families, Family

# In order: what is not HTTP, or is refused before the application sees it. Headers or trailers that are slow or large.
# Requests that wait for the answers before theirs. A request that ended early. Too many connections, and idle ones that
# ended for others. Unfinished requests that are too large together. Answers that the client does not read.
END_REASONS = (
    "not_http",
    "slow_headers",
    "large_headers",
    "pipelined",
    "ended_early",
    "connections",
    "idle",
    "no_room",
    "unread_answers",
)


class Connections(Protocol):
    """Counts of one process (service/http/connections.py)."""

    open: int
    held_bytes: int

    def take_ends(self) -> dict[str, int]:
        """Ended connections by reason, since the last call."""


class ConnectionMetrics(Families):
    """Metrics of one worker's connections, updated from time to time."""

    _open = Family(Gauge, "ranking_connections", "Open connections of clients", workers="livesum")
    _held = Family(
        Gauge,
        "ranking_unfinished_request_bytes",
        "Bytes of all unfinished requests together",
        workers="livesum",
    )
    _ends = Family(
        Counter,
        "ranking_connections_ended",
        "Connections that the service has ended by itself, but for idle ones whose time was over",
        ("reason",),
    )

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        for reason in END_REASONS:
            self._ends.labels(reason)

    def update(self, connections: Connections) -> None:
        """Set the connections of now, and count those that have ended since."""
        self._open.set(connections.open)
        self._held.set(connections.held_bytes)
        for reason, count in connections.take_ends().items():
            self._ends.labels(reason).inc(count)
