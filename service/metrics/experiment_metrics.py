"""Metrics of experiments: requests by arm and status, requests left out of an experiment, and arms that fell back."""

from collections.abc import Mapping, Sequence

from prometheus_client import Counter

from model.experiments.assignment import REASONS
from service.metrics.family import Families, Family


class ExperimentMetrics(Families):
    """The metrics of experiments. The holdout is one of them, with its two arms."""

    _requests = Family(
        Counter,
        "ranking_experiment_requests",
        "Scoring requests of an experiment's arm that came as far as a model version, by status",
        ("model", "experiment", "arm", "code"),
    )
    _left_out = Family(
        Counter,
        "ranking_experiment_left_out",
        "Requests left out of an experiment: they have no unit, or name themselves what it sets",
        ("model", "experiment", "reason"),
    )
    _fell_back = Family(
        Counter,
        "ranking_experiment_fell_back",
        "Requests of an arm that could not answer, so that the stable version or the default did",
        ("model", "experiment", "arm"),
    )

    def add_arms(self, model: str, arms: Mapping[str, Sequence[str]]) -> None:
        """Export the arms of each experiment from 0."""
        for experiment, names in arms.items():
            for arm in names:
                self._requests.labels(model, experiment, arm, 200)
                self._fell_back.labels(model, experiment, arm)
            for reason in REASONS:
                self._left_out.labels(model, experiment, reason)

    def count(self, model: str | None, arms: Mapping[str, str], status: int) -> None:
        """Count a request that is over in the arm of each of its experiments."""
        for experiment, arm in arms.items():
            self._requests.labels(model, experiment, arm, status).inc()

    def count_left_out(self, model: str, experiment: str, reason: str) -> None:
        """Count a request that an experiment leaves out."""
        self._left_out.labels(model, experiment, reason).inc()

    def count_fallback(self, model: str, experiment: str, arm: str) -> None:
        """Count a request of an arm that cannot answer it."""
        self._fell_back.labels(model, experiment, arm).inc()
