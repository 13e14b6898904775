"""Counters of the parent too, which stays clear of torch and so of service/metrics/metrics.py.

Each is at 0 in every worker. Where workers share a folder of metrics the parent's count is one more file of it.
"""

from prometheus_client import Counter

from service.metrics.family import Family
from service.metrics.shared_files import use_allocated_files

# Before the first metric of a process is made, parent or worker.
use_allocated_files()

WORKER_RESTARTS = Family(Counter, "ranking_worker_restarts", "Workers that died and were replaced")
LOG_LINES_DROPPED = Family(
    Counter,
    "ranking_log_lines_dropped",
    "Log lines that were dropped, as the reader of stderr was too slow or gone",
)
