"""Metrics of users' state: look-ups, the breaker before the store, what events appended."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from service.metrics.batched_histogram import BatchedHistogram
from service.metrics.family import Families, Family

# `unreadable` is a user whose state in the store is none.
LOOKUP_RESULTS = ("hit", "miss", "unreadable", "timeout", "error")
# Of an event that a history is made of. `old` is one that is older than all that the history keeps.
APPEND_RESULTS = ("appended", "doubled", "old", "no_user", "no_value")
_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)


class StateMetrics(Families):
    """The metrics of `--state`."""

    lookups = Family(
        Counter,
        "ranking_state_lookups",
        "Look-ups of users in the state store, by how they ended. All but a hit take defaults",
        ("model", "result"),
    )
    seconds = Family(
        BatchedHistogram,
        "ranking_state_seconds",
        "From the beginning of a look-up to its end, which is its time limit where the store is slower",
        buckets=_SECONDS,
    )
    breaker_open = Family(
        Gauge,
        "ranking_state_breaker_open",
        "1 while no look-ups are made, as the store failed several times, otherwise 0",
        workers="livemax",
    )
    wrong_values = Family(
        Counter,
        "ranking_state_wrong_values",
        "Values of the store that do not fit their feature, which then took its default",
        ("model", "feature"),
    )
    appends = Family(
        Counter,
        "ranking_state_appends",
        "Events of types that a history is made of, by what became of them",
        ("model", "result"),
    )
    append_lag_seconds = Family(
        Gauge,
        "ranking_state_append_lag_seconds",
        "Seconds for which accepted events wait to be in users' state, 0 where none waits",
        workers="livemax",
    )
    missed_bytes = Family(
        Counter,
        "ranking_state_missed_bytes",
        "Bytes of the event log that were removed before their events were in users' state",
    )

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.breaker_open.set(0)

    def add_model(self, model: str, features: frozenset[str]) -> None:
        """Export what is counted of a model from 0."""
        for result in LOOKUP_RESULTS:
            self.lookups.labels(model, result)
        for result in APPEND_RESULTS:
            self.appends.labels(model, result)
        for feature in features:
            self.wrong_values.labels(model, feature)

    def count_lookup(self, model: str, result: str, seconds: float) -> None:
        """Count a look-up that has ended."""
        self.lookups.labels(model, result).inc()
        self.seconds.observe_soon(seconds)
