"""Metrics of connections: how many are open, what their unfinished requests hold, and which the service has ended."""

from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge

from service.metrics.family import Families, Family

# What is not HTTP, or is refused before the application sees it; headers or trailers that are slow or large; requests
# that wait for the answers before theirs; a request that ended early; too many connections, and idle ones that ended
# for others; unfinished requests that hold too much together; answers that nobody reads.
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
        """Ended connections by reason, since it was last asked."""


class ConnectionMetrics(Families):
    """Of one worker, updated from time to time."""

    _open = Family(Gauge, "ranking_connections", "Open connections of clients", workers="livesum")
    _held = Family(
        Gauge,
        "ranking_unfinished_request_bytes",
        "Bytes that requests which are not whole hold together",
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
