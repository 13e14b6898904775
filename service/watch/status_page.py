"""The page at `/`: what is served and how it goes, for a person with a browser and no dashboard at hand.

In: the models with their journals, the metrics of all workers, this worker's last warnings. Out: one plain HTML page
without scripts, made at each request for it. Rates and latencies are over the last minutes, from what this worker has
recorded of all workers' metrics: a worker that has just started knows of less. Of log lines it shows the message and
which model, never a reason that may name files, and no request's content.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from prometheus_client.metrics_core import Metric
from starlette.responses import Response

from model.rollout.decisions import DAY
from model.rollout.journal import Content, shown
from service.base.log import LOGGER
from service.metrics.drift_windows import FAMILIES
from service.metrics.metrics import SCORING, Metrics

NOTE_SECONDS = 10.0
WINDOW_SECONDS = 300.0
_MOST_ERRORS = 20
# Of a population stability index: what is above is a large shift.
LARGE_DRIFT = 0.25
_MOST_DECISIONS = 10
_MOST_REASONS = 500  # characters of an entry
_LATENCY = "ranking_request_duration_seconds"
# The counters with rates.
_COUNTED = frozenset({
    "ranking_requests_total", "ranking_requests_rejected_total", "ranking_model_requests_total",
    "ranking_candidates_per_request_sum", f"{_LATENCY}_bucket", "ranking_experiment_requests_total",
})  # fmt: skip

# The page is what the service wrote into it, and nothing is loaded or run.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"

_page = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
).get_template("status_page.html")

# Value by metric and labels.
Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


class _Note(NamedTuple):
    at: float
    samples: Samples


class StatusPage:
    """Keep the samples that the page's rates need."""

    def __init__(
        self,
        metrics: Metrics,
        entries: Callable[[], list[dict[str, Any]]],
        journal: Callable[[str, int], Content],
        unready_reason: Callable[[], str | None],
        file_errors: Callable[[], list[str]] = list,
        *,
        has_play: bool = False,
    ) -> None:
        self._metrics = metrics
        self._entries = entries
        self._journal = journal
        self._unready_reason = unready_reason
        self._file_errors = file_errors
        self._has_play = has_play
        self._notes: deque[_Note] = deque(maxlen=round(WINDOW_SECONDS / NOTE_SECONDS) + 1)
        self._errors = _LastErrors()
        self._started = time.monotonic()

    async def keep_notes(self) -> None:
        """Note the metrics every few seconds, until it is cancelled."""
        logger = logging.getLogger(LOGGER)
        logger.addHandler(self._errors)
        try:
            while True:
                self._notes.append(await asyncio.to_thread(self._note, _COUNTED))
                await asyncio.sleep(NOTE_SECONDS)
        finally:
            logger.removeHandler(self._errors)

    def answer(self) -> Response:
        """The page as an answer."""
        headers = {"Cache-Control": "no-store", "Content-Security-Policy": _POLICY}
        return Response(self.render(), media_type="text/html", headers=headers)

    def render(self) -> str:
        """The page."""
        now = self._note()
        models = self._entries()
        since = self._notes[0] if self._notes else now
        window = Window(since.samples, now.samples, max(now.at - since.at, 1e-9))
        return _page.render(
            reason=self._unready_reason(),
            workers={
                state: int(now.samples.get(("ranking_workers", frozenset({("state", state)})), 0))
                for state in ("ready", "unready")
            },
            uptime=_duration(now.at - self._started),
            minutes=_duration(now.at - since.at),
            models=models,
            journals={model["name"]: self._last_decisions(model["name"]) for model in models},
            file_errors=self._file_errors(),
            requests=window.by_label("ranking_requests_total", "code", endpoint=SCORING),
            refused=window.by_label("ranking_requests_rejected_total", "reason"),
            candidates=window.rate("ranking_candidates_per_request_sum"),
            latency={
                name: window.quantile(_LATENCY, share, endpoint=SCORING)
                for name, share in (("median", 0.5), ("p99", 0.99))
            },
            versions=window.by_status("ranking_model_requests_total", "model", "version"),
            arms=window.by_status("ranking_experiment_requests_total", "model", "experiment", "arm"),
            drifts=_drifts(now.samples),
            large=LARGE_DRIFT,
            has_play=self._has_play,
            errors=list(self._errors.lines),
            now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        )

    def _last_decisions(self, model: str) -> dict[str, Any]:
        """The last lines of a model's journal, the newest first, or why it cannot be read."""
        try:
            content = self._journal(model, _MOST_DECISIONS)
        except ValueError:  # its reason names the path
            return {"entries": [], "fault": "the journal cannot be read; the daily job's log says more"}
        lines = [
            {
                "time": entry.time.strftime("%Y-%m-%d %H:%M:%S"),
                "step": entry.step,
                "decision": entry.decision,
                "about": shown(entry.versions) if entry.versions else str(entry.figures.get(DAY, "")),
                "reasons": "; ".join(entry.reasons)[:_MOST_REASONS],
                "who": entry.who,
            }
            for entry in reversed(content.entries)
        ]
        torn = f"lines of the journal that are none, and passed over: {len(content.faults)}" if content.faults else None
        return {"entries": lines, "fault": torn}

    def _note(self, names: Collection[str] | None = None) -> _Note:
        """Every sample of now, or those of the names: what is kept is bounded, however much there is to scrape."""
        return _Note(time.monotonic(), _samples(self._metrics.families(), names))


class Window:
    """Increases of counters between two notes, `seconds` apart. A series that was not there began at 0."""

    def __init__(self, before: Samples, after: Samples, seconds: float) -> None:
        # A counter that fell belongs to a process that started again.
        self._rises = {
            key: value - earlier if value >= (earlier := before.get(key, 0.0)) else value
            for key, value in after.items()
        }
        self._seconds = seconds

    def rate(self, name: str) -> float:
        """Rate of all series of a name together, per second."""
        return sum(rise for (known, _), rise in self._rises.items() if known == name) / self._seconds

    def by_label(self, name: str, label: str, **wanted: Sequence[str]) -> dict[str, float]:
        """Rates per second by the values of a label, of the series whose other labels have one of the wanted values.
        Only those that are not 0."""
        rates: dict[str, float] = {}
        for labels, rise in self._of(name, wanted):
            rates[labels[label]] = rates.get(labels[label], 0.0) + rise / self._seconds
        return {value: rate for value, rate in sorted(rates.items()) if rate}

    def by_status(self, name: str, *by: str) -> dict[tuple[str, ...], dict[str, float]]:
        """Rates by second by the values of some labels, and there by status."""
        found: dict[tuple[str, ...], dict[str, float]] = {}
        for labels, rise in self._of(name, {}):
            if rise:
                found.setdefault(tuple(labels[label] for label in by), {})[labels["code"]] = rise / self._seconds
        return found

    def quantile(self, name: str, share: float, **wanted: Sequence[str]) -> float | None:
        """The quantile of a histogram, interpolated within its bucket as Prometheus does it. None without a value."""
        counts: dict[float, float] = {}
        for labels, rise in self._of(f"{name}_bucket", wanted):
            counts[float(labels["le"])] = counts.get(float(labels["le"]), 0.0) + rise
        bounds = sorted(counts)
        if not bounds or not counts[bounds[-1]]:
            return None
        rank, lower, below = share * counts[bounds[-1]], 0.0, 0.0
        for bound in bounds:
            if counts[bound] >= rank:
                if math.isinf(bound):
                    return lower
                return lower + (bound - lower) * (rank - below) / (counts[bound] - below)
            lower, below = bound, counts[bound]
        return lower

    def _of(self, name: str, wanted: Mapping[str, Sequence[str]]) -> Iterable[tuple[dict[str, str], float]]:
        for (known, pairs), rise in self._rises.items():
            if known == name:
                labels = dict(pairs)
                if all(labels[label] in values for label, values in wanted.items()):
                    yield labels, rise


class _LastErrors(logging.Handler):
    """The last warnings and errors."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: deque[dict[str, str]] = deque(maxlen=_MOST_ERRORS)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        fields = getattr(record, "fields", {})
        told = " ".join(str(fields[key]) for key in ("model", "model_version", "request_id") if key in fields)
        at = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S")
        line = {"time": at, "level": record.levelname.lower(), "message": record.getMessage(), "about": told}
        self.lines.appendleft(line)


def _samples(families: Iterable[Metric], names: Collection[str] | None) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if names is None or (sample.name in names and sample.value)  # what is absent began at 0
    }


def _drifts(samples: Samples) -> list[tuple[str, str, str, float]]:
    """Model, version, what and its index, the highest first."""
    found = []
    for what, (name, _) in FAMILIES.items():
        for (known, pairs), value in samples.items():
            if known == name and not math.isnan(value):
                labels = dict(pairs)
                found.append((labels["model"], labels["version"], f"{what} {labels[what]}", value))
    return sorted(found, key=lambda line: -line[3])


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
