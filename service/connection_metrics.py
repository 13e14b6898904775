"""Metrics of connections: how many are open, what their unfinished requests hold, and which the service has ended."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from service.connections import END_REASONS, Connections


class ConnectionMetrics:
    """Of one worker; told from time to time."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._open = Gauge(
            "ranking_connections", "Open connections of clients", registry=registry, multiprocess_mode="livesum"
        )
        self._held = Gauge(
            "ranking_unfinished_request_bytes",
            "Bytes that requests which are not whole hold together",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._ends = Counter(
            "ranking_connections_ended",
            "Connections that the service has ended by itself, but for idle ones whose time was over",
            ["reason"],
            registry=registry,
        )
        for reason in END_REASONS:
            self._ends.labels(reason)

    def tell(self, connections: Connections) -> None:
        """Takes what there is now, and what has ended since."""
        self._open.set(connections.open)
        self._held.set(connections.held_bytes)
        for reason, count in connections.take_ends().items():
            self._ends.labels(reason).inc(count)
