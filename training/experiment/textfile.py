"""experiment.prom: the arms of an experiment at its last analysis, for the textfile collector of the node exporter."""

import time
from collections.abc import Iterator
from pathlib import Path

from training.experiment.contrasts import Analysis
from training.experiment.metrics import METRICS
from training.experiment.question import Question
from training.experiment.users import Users
from training.textfile import Sample, write_textfile

NAME = "experiment.prom"
SUCCESS, TOO_FEW, FAULTY = 0, 3, 4


def status_of(analysis: Analysis) -> int:
    """Status of the command after an analysis. Faults come before too few users."""
    return FAULTY if analysis.faults else SUCCESS if analysis.too_few is None else TOO_FEW


def write_experiment(path: Path, users: Users, analysis: Analysis, question: Question, model: str) -> None:
    """Write the metrics, whole."""
    write_textfile(path, METRICS, _samples(users, analysis, {"model": model, "experiment": question.name}))


def _samples(users: Users, analysis: Analysis, labels: dict[str, str]) -> Iterator[Sample]:
    # By chance evidence exceeds x, at any look, with probability 1/x at most.
    yield Sample("ranking_experiment_sample_ratio_p_value", labels, 1 / max(1.0, analysis.ratio_evidence))
    for arm, count in users.exposed.items():
        yield Sample("ranking_experiment_users", {**labels, "arm": arm}, count)
    yield Sample("ranking_experiment_analysis_status", labels, status_of(analysis))
    yield Sample("ranking_experiment_analysed_timestamp_seconds", labels, time.time())
