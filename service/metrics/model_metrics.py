"""The metrics of one served model version. service/metrics/metrics.py has their names and meanings.

In: its scorer, and every request that it scores. Out: label sets of the process's metrics, exported from
0, so that a rate is known from the first request on.

Shapes: N candidates, O outputs.
"""

import time
from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter

from model.recalibration import Recalibration
from model.scorer.scorer import Engine, Scored, Scorer
from service.metrics.batched_histogram import BatchedHistogram
from service.metrics.metrics import LOOKUP_RESULTS, Metrics


class ModelMetrics:
    """The metrics of one served model version, with every label set exported from 0."""

    def __init__(self, metrics: Metrics, model: str, scorer: Scorer) -> None:
        schema, version, reference = scorer.schema, scorer.version, scorer.reference
        self._labels = (model, version)
        self._metrics = metrics
        metrics.add_version(model, version)
        metrics.drift.add_version(model, version, reference)
        self._info = metrics.info.labels(model, version, scorer.engine, scorer.calibration.generation or "")
        self._info.set(1)
        metrics.loaded_at.labels(model, version).set(time.time())
        metrics.created_at.labels(model, version).set(datetime.fromisoformat(scorer.manifest.created).timestamp())
        recalibration = scorer.calibration.recalibration
        means = dict(zip(scorer.outputs, reference.means_O.tolist(), strict=True))
        self._set_means(means if recalibration is None else recalibration.manifest.means)
        for code in (200, 500):
            metrics.model_requests.labels(model, version, code)
        self._scores, *others = [metrics.task_score.labels(model, version, output) for output in scorer.outputs]
        self._scores.observe_matrices(others)
        self._combined_scores: dict[str, BatchedHistogram] = {}
        requested = [*schema.requested("request"), *schema.requested("candidate")]
        self._missing = {feature.name: metrics.missing.labels(model, feature.name) for feature in requested}
        self._oov = {feature.name: metrics.oov.labels(model, feature.name) for feature in requested if feature.has_ids}
        self._lookups = {result: metrics.lookups.labels(model, result) for result in LOOKUP_RESULTS}

    def count_lookups(self, results: Mapping[str, int]) -> None:
        """Count the candidates of one request by LOOKUP_RESULTS."""
        _add(self._lookups, results)

    def add_value_models(self, names: Sequence[str]) -> None:
        """Export the combined scores of these value models from 0."""
        self._combined_scores = {name: self._metrics.combined_score.labels(*self._labels, name) for name in names}

    def take_calibration(self, recalibration: Recalibration, engine: Engine) -> None:
        """Name the generation that calibrates, and compare means with those that it was fitted with."""
        self._info.set(0)
        self._info = self._metrics.info.labels(*self._labels, engine, str(recalibration.manifest.generation))
        self._info.set(1)
        self._set_means(recalibration.manifest.means)

    def _set_means(self, means: Mapping[str, float]) -> None:
        for output, mean in means.items():
            self._metrics.reference_mean.labels(*self._labels, output).set(mean)

    def observe(self, scored: Scored, value_model: str, score_N: NDArray[np.float64]) -> None:
        """Count one scored request."""
        self._scores.observe_soon(scored.answers_NO)
        combined = self._combined_scores.get(value_model)
        # A request that has begun may still score with a value model that has just been taken out of the file.
        (combined or self._metrics.combined_score.labels(*self._labels, value_model)).observe_soon(score_N)
        _add(self._missing, scored.missing)
        _add(self._oov, scored.oov)

    def retire(self) -> None:
        """Mark the version as served no more."""
        self._info.set(0)
        self._metrics.drift.remove_version(*self._labels)
        self._metrics.retire_version(*self._labels)


def _add(counters: Mapping[str, Counter], counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        counters[name].inc(count)
