"""Losses of the impression log: counted, logged at once but not again within a minute, and kept for lines of the log.

In: how many lines were lost, and why. Out: counts of `ranking_impression_log_total`, log lines, and what the log itself
has still to say.
"""

import threading
from collections import Counter
from typing import Literal, get_args

from service.base.log import FieldLogger, Throttle
from service.metrics.metrics import Metrics

Loss = Literal["dropped", "failed", "full", "no_key", "killed"]
_LOSSES: tuple[Loss, ...] = get_args(Loss)
# Reasons are few. What a disk says is not ours to bound.
_MOST_REASONS = 20
_OTHER = "other"

_log = FieldLogger("impressions")


class Losses:
    """The losses of one worker. For several threads."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = {result: metrics.impressions.labels(result) for result in _LOSSES}
        self._lock = threading.Lock()
        self._unlogged: Counter[Loss] = Counter()
        self._unwritten: Counter[str] = Counter()
        self._reason = ""
        self._throttle = Throttle()

    def count(self, result: Loss, lines: int, reason: str) -> None:
        """Count lines of which the log has to say that they are lost."""
        with self._lock:
            if lines:
                is_known = reason in self._unwritten or len(self._unwritten) < _MOST_REASONS
                self._unwritten[reason if is_known else _OTHER] += lines
        self.count_written(result, lines, reason)

    def count_written(self, result: Loss, lines: int, reason: str) -> None:
        """Count lines of which the log says that they are lost."""
        self._metrics[result].inc(lines)
        with self._lock:
            self._unlogged[result] += lines
            self._reason = reason
            is_due = self._throttle.is_due()
        if is_due:
            self.log_losses()

    def log_losses(self) -> None:
        """Log what has not been logged."""
        with self._lock:
            unlogged, self._unlogged = self._unlogged, Counter()
            reason, self._reason = self._reason, ""
        if reason:
            lines = {result: unlogged[result] for result in _LOSSES}
            _log.warning("impressions are not logged", **lines, reason=reason)

    def unwritten(self) -> list[tuple[str, int]]:
        """Reasons, and the lines of each that the log does not speak of yet."""
        with self._lock:
            return list(self._unwritten.items())

    def settle(self, reason: str, lines: int) -> None:
        """The log says now that so many were lost."""
        with self._lock:
            self._unwritten[reason] -= lines
            if not self._unwritten[reason]:
                del self._unwritten[reason]
