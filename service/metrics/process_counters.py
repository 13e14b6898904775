"""Counters of the parent too, which stays clear of torch and so of service/metrics/metrics.py.

In: a registry. Out: a counter, at 0 in every worker; where workers share a folder of metrics the parent's count is one
more file of it.
"""

from prometheus_client import CollectorRegistry, Counter

from service.metrics.shared_files import use_allocated_files

# Before the first metric of a process is made, parent or worker.
use_allocated_files()


def worker_restarts(registry: CollectorRegistry) -> Counter:
    """The counter of workers that died and were replaced."""
    return Counter("ranking_worker_restarts", "Workers that died and were replaced", registry=registry)


def log_lines_dropped(registry: CollectorRegistry) -> Counter:
    """The counter of log lines that nobody will read."""
    return Counter(
        "ranking_log_lines_dropped",
        "Log lines that were dropped, as whoever reads stderr was too slow or gone",
        registry=registry,
    )
