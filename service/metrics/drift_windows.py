"""Windows of recent features and answers, and their drift from what a version saw at its export.

In: counts by bin. Out: `ranking_score_drift{model,version,task}` and `ranking_feature_drift{model,version,feature}`,
population stability indices (model/artifact/reference.py) over a window that forgets half of its values in
HALF_LIFE_SECONDS. NaN until it has FEWEST values: a few requests say nothing.

With several workers each writes what its window counts, by bin, and the indices are made of the sums: a mean or a
maximum of the workers' own indices would be neither.

Shapes: K bins.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from model.scorer.scorer import Bins, Reference

HALF_LIFE_SECONDS = 600.0
FEWEST = 1_000
# Counts by bin, for the exposition to read. They do not leave it.
_WINDOW = "ranking_drift_window"
# By what they are of: name and help.
FAMILIES = {
    "task": ("ranking_score_drift", "Population stability index of an output's answers against those at export"),
    "feature": ("ranking_feature_drift", "Population stability index of a feature's values against those at export"),
}

# Kind (task or feature), model, version, name.
Key = tuple[str, str, str, str]


class _Window:
    """Counts by bin of one task or feature, in this worker. `drift` gives the index of such counts."""

    def __init__(self, drift: Callable[[NDArray[np.float64]], float], gauges: Sequence[Gauge]) -> None:
        self.drift = drift
        self.counts_K = np.zeros(len(gauges))
        self._gauges = gauges

    def decay(self, share: float) -> None:
        """Forget a share of the counts, and export the rest."""
        self.counts_K *= 1 - share
        for gauge, count in zip(self._gauges, self.counts_K.tolist(), strict=True):
            gauge.set(count)


class DriftWindows:
    """The windows of one worker, of several if the registry `is_shared`."""

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

    def add_version(self, model: str, version: str, reference: Reference) -> None:
        """Export the indices of a version, from the moment on that it is served."""
        bins: dict[Key, Bins] = {
            (what, model, version, name): kept
            for what, references in (("task", reference.scores), ("feature", reference.features.features))
            for name, kept in references.items()
        }
        made = {
            key: _Window(kept.drift, [self._gauge.labels(*key, number) for number in range(len(kept.shares))])
            for key, kept in bins.items()
            if key not in self._windows
        }
        self._windows = {**self._windows, **made}

    def remove_version(self, model: str, version: str) -> None:
        """A version is served no more."""
        gone = {key: window for key, window in self._windows.items() if key[1:3] == (model, version)}
        self._windows = {key: window for key, window in self._windows.items() if key not in gone}
        if not self._is_shared:  # from files that workers share nothing can be taken back
            for key, window in gone.items():
                for number in range(len(window.counts_K)):
                    self._gauge.remove(*key, str(number))

    def add(self, key: Key, counts_K: NDArray[np.float64]) -> None:
        """Counts values by bin, where the version is served."""
        window = self._windows.get(key)
        if window is not None:
            window.counts_K += counts_K

    def decay(self, seconds: float) -> None:
        """Forget in all windows what so much time takes, and export the rest."""
        for window in self._windows.values():
            window.decay(1 - 0.5 ** (seconds / HALF_LIFE_SECONDS))

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
