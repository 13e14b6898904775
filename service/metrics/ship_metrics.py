"""Metrics of shipping: which closed files of the logs are copied to their destination, and which wait."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from service.metrics.family import Families, Family

LOGS = ("impressions", "events")


class ShipMetrics(Families):
    """The metrics of `--ship`. The worker that ships has the gauges."""

    shipped = Family(
        Counter, "ranking_log_files_shipped", "Closed files of a log copied to where it is shipped", ("log",)
    )
    failures = Family(
        Counter, "ranking_log_ship_failures", "Failures to copy closed files of a log; they are tried again", ("log",)
    )
    unshipped_files = Family(
        Gauge,
        "ranking_log_unshipped_files",
        "Closed files of a log that are not copied yet",
        ("log",),
        workers="livemax",
    )
    unshipped_seconds = Family(
        Gauge,
        "ranking_log_unshipped_seconds",
        "Age of the oldest closed file of a log that is not copied yet, 0 where there is none",
        ("log",),
        workers="livemax",
    )

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        for log in LOGS:
            for family in (self.shipped, self.failures, self.unshipped_files, self.unshipped_seconds):
                family.labels(log)
