"""Metrics of a model's daily cycle, as its journal has them: nights, days and canaries.

In: decisions. Out: gauges, of models alone whose journal has a night: a model that is trained by hand has no alerts of
a job that never was.
"""

from datetime import UTC, date, datetime, time, timedelta

from prometheus_client import Gauge

from model.rollout.decisions import DAILY, DATA_GATE, FAIL, FINISH, JUDGE, QUARANTINE, WITHDRAW, Decisions
from service.metrics.family import Families, Family

_DAY = timedelta(days=1)


class LoopMetrics(Families):
    """The metrics of daily cycles. Times are those of the journal, in Unix time."""

    _finished_at = Family(
        Gauge,
        "ranking_daily_finished_timestamp_seconds",
        "Unix time at which a night of the daily job ended well last",
        ("model",),
        workers="livemax",
    )
    _has_failed = Family(
        Gauge,
        "ranking_daily_failed",
        "1 where the last night of the daily job ended with an error, otherwise 0",
        ("model",),
        workers="livemax",
    )
    _data_end = Family(
        Gauge,
        "ranking_data_day_end_timestamp_seconds",
        "Unix time of the end of the newest day that the data gate has seen, in UTC",
        ("model",),
        workers="livemax",
    )
    _quarantined = Family(
        Gauge, "ranking_quarantined_days", "Days that are left out of every window", ("model",), workers="livemax"
    )
    _quarantined_at = Family(
        Gauge,
        "ranking_day_quarantined_timestamp_seconds",
        "Unix time at which the data gate refused a day last",
        ("model",),
        workers="livemax",
    )
    _withdrawn_at = Family(
        Gauge,
        "ranking_canary_withdrawn_timestamp_seconds",
        "Unix time at which the judge withdrew a canary last",
        ("model",),
        workers="livemax",
    )

    def set_decisions(self, model: str, decisions: Decisions) -> None:
        """Set what a model's journal says."""
        last = decisions.last(DAILY, FINISH, FAIL)
        if last is None:
            return
        self._has_failed.labels(model).set(last.decision == FAIL)
        self._quarantined.labels(model).set(len(decisions.quarantined))
        if decisions.gates:
            self._data_end.labels(model).set(_end_of(max(decisions.gates)))
        for gauge, entry in (
            (self._finished_at, decisions.last(DAILY, FINISH)),
            (self._quarantined_at, decisions.last(DATA_GATE, QUARANTINE)),
            (self._withdrawn_at, decisions.last(JUDGE, WITHDRAW)),
        ):
            if entry is not None:
                gauge.labels(model).set(entry.time.timestamp())


def _end_of(day: date) -> float:
    return (datetime.combine(day, time(), UTC) + _DAY).timestamp()
