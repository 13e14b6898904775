"""How far what is asked and answered has moved from what a version saw when it was exported.

In: scored requests, some of a second, with their columns and answers. Out: `ranking_score_drift{model,version,task}`
and `ranking_feature_drift{model,version,feature}`, population stability indices (model/reference.py) over a window that
forgets half of what it holds in HALF_LIFE_SECONDS. NaN until it holds FEWEST values: a few requests say nothing.

A thread of its own, of low priority, counts; no answer waits for it. What a request had a catalogue give is not in its
columns, so candidate features are then left out. The reference is of impressions, and requests are of candidates,
which a ranker chose fewer of: what tells is the change of an index, not its height on the first day.

With several workers each writes what its window counts, by bin, and the indices are made of the sums: a mean or a
maximum of the workers' own indices would be neither.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from model.features import Column
from model.schema import Block
from model.scorer import Bins, Reference
from service.background import lower_priority
from service.request_log import LOGGER

if TYPE_CHECKING:
    from service.loaded_version import ServedModel

HALF_LIFE_SECONDS = 600.0
FEWEST = 1_000
SAMPLED_PER_SECOND = 5
_NICENESS = 19
_WRITE_SECONDS = 1.0
_MOST_WAITING = 8
_STOP_SECONDS = 5.0
# Counts by bin, for the exposition to read; they do not leave it.
_WINDOW = "ranking_drift_window"
# By what they are of: name and help.
FAMILIES = {
    "task": ("ranking_score_drift", "Population stability index of a task's answers against those at export"),
    "feature": ("ranking_feature_drift", "Population stability index of a feature's values against those at export"),
}
_BLOCKS: tuple[Block, Block] = ("request", "candidate")

_log = logging.getLogger(f"{LOGGER}.drift")

# What: task or feature; of which model and version; its name.
Key = tuple[str, str, str, str]


class _Sample(NamedTuple):
    model: "ServedModel"
    columns: tuple[Mapping[str, Column], Mapping[str, Column]]
    uses_catalogue: bool
    answers_NT: NDArray[np.float32]


class _Window:
    """Counts by bin of one task or feature, in this worker; `drift` gives the index of such counts."""

    def __init__(self, drift: Callable[[NDArray[np.float64]], float], gauges: Sequence[Gauge]) -> None:
        self.drift = drift
        self.counts_K = np.zeros(len(gauges))
        self._gauges = gauges

    def forget(self, share: float) -> None:
        """Lets go of a share of what it holds, and has the exposition see the rest."""
        self.counts_K *= 1 - share
        for gauge, count in zip(self._gauges, self.counts_K.tolist(), strict=True):
            gauge.set(count)


class Drift:
    """The windows of one worker, of several if the registry `is_shared`. `take` never waits."""

    def __init__(self, registry: CollectorRegistry, *, is_shared: bool = False) -> None:
        self._gauge = Gauge(
            _WINDOW,
            "Counts of the drift window",
            ["what", "model", "version", "name", "bin"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._is_shared = is_shared
        self._windows: dict[Key, _Window] = {}
        self._queue: Queue[_Sample | None] = Queue(_MOST_WAITING)
        self._next_at = 0.0
        self._written_at = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="drift", daemon=True)

    def start(self) -> None:
        """Starts the counting thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; what waits is let go."""
        with suppress(Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def know(self, model: str, version: str, reference: Reference) -> None:
        """Exports the indices of a version, from the moment on that it is served."""
        bins: dict[Key, Bins] = {("task", model, version, name): kept for name, kept in reference.scores.items()}
        if reference.features is not None:
            bins |= {("feature", model, version, name): kept for name, kept in reference.features.features.items()}
        made = {
            key: _Window(kept.drift, [self._gauge.labels(*key, number) for number in range(len(kept.shares))])
            for key, kept in bins.items()
            if key not in self._windows
        }
        self._windows = {**self._windows, **made}

    def forget(self, model: str, version: str) -> None:
        """A version is served no more."""
        gone = {key: window for key, window in self._windows.items() if key[1:3] == (model, version)}
        self._windows = {key: window for key, window in self._windows.items() if key not in gone}
        if not self._is_shared:  # from files that workers share nothing can be taken back
            for key, window in gone.items():
                for number in range(len(window.counts_K)):
                    self._gauge.remove(*key, str(number))

    def take(
        self,
        model: "ServedModel",
        columns: tuple[Mapping[str, Column], Mapping[str, Column]],
        answers_NT: NDArray[np.float32],
        *,
        uses_catalogue: bool = False,
    ) -> None:
        """Samples a scored request; `columns` are the request's and the candidates'."""
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + 1 / SAMPLED_PER_SECOND
        with suppress(Full):
            self._queue.put_nowait(_Sample(model, columns, uses_catalogue, answers_NT))

    def families(self, families: Iterable[Metric]) -> Iterator[Metric]:
        """Metrics of one worker or of several, with the indices in the place of the windows."""
        for family in families:
            if family.name == _WINDOW:
                yield from self._indices(family)
            else:
                yield family

    def _indices(self, windows: Metric) -> Iterator[Metric]:
        counts: dict[Key, NDArray[np.float64]] = {}
        known = self._windows
        for sample in windows.samples:
            labels = sample.labels
            key = (labels["what"], labels["model"], labels["version"], labels["name"])
            if key in known:
                counts.setdefault(key, np.zeros(len(known[key].counts_K)))[int(labels["bin"])] = sample.value
        for what, (name, help_text) in FAMILIES.items():
            family = GaugeMetricFamily(name, help_text, labels=["model", "version", what])
            for key, counts_K in counts.items():
                if key[0] == what:
                    family.add_metric(key[1:], known[key].drift(counts_K) if counts_K.sum() >= FEWEST else math.nan)
            yield family

    def _work(self) -> None:
        lower_priority(_NICENESS)
        while True:
            with suppress(Empty):
                sample = self._queue.get(timeout=_WRITE_SECONDS)
                if sample is None:
                    return
                try:
                    self._count(sample)
                except Exception:  # whatever a version holds, the thread goes on for the others
                    _log.exception("counting for drift failed")
                del sample  # an idle thread keeps no version alive
            self._write()

    def _write(self) -> None:
        now = time.monotonic()
        passed = now - self._written_at
        if passed >= _WRITE_SECONDS:
            self._written_at = now
            for window in self._windows.values():
                window.forget(1 - 0.5 ** (passed / HALF_LIFE_SECONDS))

    def _count(self, sample: _Sample) -> None:
        scorer, answers_NT = sample.model.scorer, sample.answers_NT
        reference = scorer.reference
        counted = {
            ("task", task): reference.scores[task].counts(answers_N)
            for task, answers_N in zip(scorer.tasks, answers_NT.T, strict=True)
        }
        if reference.features is not None:
            rows = {"request": 1, "candidate": len(answers_NT)}
            for block, columns in zip(_BLOCKS, sample.columns, strict=True):
                if block == "request" or not sample.uses_catalogue:
                    encoded = scorer.encoder.encode(block, columns, rows[block], as_served=True).block
                    for name, counts_K in reference.features.counts(scorer.schema, block, encoded).items():
                        counted["feature", name] = counts_K
        for (what, name), counts_K in counted.items():
            window = self._windows.get((what, sample.model.name, scorer.version, name))
            if window is not None:
                window.counts_K += counts_K
