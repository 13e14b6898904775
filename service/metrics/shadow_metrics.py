"""Scores of the shadow version beside those of the version that answered.

In: one request scored by both. Out: histograms of the rank correlation and of the overlap of the best ten, by request,
and sums of each output's answers by both, from which the shift of the output's mean over any time is

    (rate(ranking_shadow_task_answers_total{answered_by="shadow"}[1h]) - ignoring(answered_by)
     rate(ranking_shadow_task_answers_total{answered_by="stable"}[1h]))
    / ignoring(task) group_left rate(ranking_shadow_candidates_total[1h])

in the task's own unit. It is right over all workers, which a gauge of the shift would not be.

Shapes: N candidates.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter, Histogram

from service.metrics.family import Families, Family
from service.metrics.ranking_distance import TOP, Movement

# Scored, or dropped as too many waited, or skipped as the shadow version lacks the catalogue that answered, or failed.
RESULTS = ("scored", "dropped", "skipped", "failed")
_CORRELATIONS = (-0.5, 0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0)
_OVERLAPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_TEN = TOP.index(10)
_VERSION = ("model", "version")


class ShadowMetrics(Families):
    """The metrics of shadow scoring. `version` is the shadow's."""

    _requests = Family(
        Counter,
        "ranking_shadow_requests",
        "Requests taken for the shadow version, by what became of them",
        (*_VERSION, "result"),
    )
    _candidates = Family(
        Counter, "ranking_shadow_candidates", "Candidates that the shadow version scored too", _VERSION
    )
    _correlation = Family(
        Histogram,
        "ranking_shadow_rank_correlation",
        "Kendall's tau between the shadow version's ranking of a request and the one that was answered",
        _VERSION,
        buckets=_CORRELATIONS,
    )
    _overlap = Family(
        Histogram,
        "ranking_shadow_top10_overlap",
        "Share of a request's ten best candidates that both versions have in common",
        _VERSION,
        buckets=_OVERLAPS,
    )
    _answers = Family(
        Counter,
        "ranking_shadow_task_answers",
        "Sum of an output's answers over the candidates that both versions scored, in the task's own unit",
        (*_VERSION, "task", "answered_by"),
    )

    @property
    def of_versions(self) -> tuple[Counter | Histogram, ...]:
        """Metrics that have a label set, or several, for a version."""
        return (self._requests, self._candidates, self._correlation, self._overlap, self._answers)

    def add_version(self, model: str, version: str, outputs: Sequence[str]) -> None:
        """Export what is counted of a shadow version from 0."""
        for result in RESULTS:
            self._requests.labels(model, version, result)
        self._candidates.labels(model, version)
        self._correlation.labels(model, version)
        self._overlap.labels(model, version)
        for output in outputs:
            for answered_by in ("stable", "shadow"):
                self._answers.labels(model, version, output, answered_by)

    def count(self, model: str, version: str, result: str) -> None:
        """Count a request by one of RESULTS."""
        self._requests.labels(model, version, result).inc()

    def observe(
        self,
        model: str,
        version: str,
        moved: Movement,
        stable: Mapping[str, NDArray[np.float32]],
        shadow: Mapping[str, NDArray[np.float32]],
        rows: int,
    ) -> None:
        """Add a request of `rows` candidates: the shift of its ranking, and answers_N of each output of either."""
        if moved.kendall_tau is not None:
            self._correlation.labels(model, version).observe(moved.kendall_tau)
        self._overlap.labels(model, version).observe(moved.overlaps[_TEN])
        self._candidates.labels(model, version).inc(rows)
        for output in stable.keys() & shadow.keys():
            for answered_by, answers_N in (("stable", stable[output]), ("shadow", shadow[output])):
                total = float(answers_N.sum(dtype=np.float64))
                self._answers.labels(model, version, output, answered_by).inc(total)
