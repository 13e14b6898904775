"""Counters that the parent process has too. It must not import torch, and so not service/metrics/metrics.py.

Every worker has each of them, at 0. Where workers share a folder of metrics the parent's count is one more file of it.
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
