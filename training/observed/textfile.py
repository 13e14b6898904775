"""observed.prom: the newest day's figures of every version, for the textfile collector of Prometheus' node exporter."""

import calendar
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

from training.observed.figures import Observed
from training.observed.metrics import METRICS
from training.textfile import Sample, write_textfile

NAME = "observed.prom"
# Of fewer labels a ratio says little, and would wake somebody for chance.
MIN_LABELS = 100


def newest_day(observed: Observed) -> date | None:
    """The newest whole day, or the newest one where none is whole."""
    whole = [day for day, hours in observed.hours.items() if hours == 24]
    return max(whole or observed.hours, default=None)


def write_observed(path: Path, observed: Observed, model: str) -> None:
    """Write the metrics, whole."""
    write_textfile(path, METRICS, _samples(observed, model))


def _samples(observed: Observed, model: str) -> Iterator[Sample]:
    day = newest_day(observed)
    for part in observed.parts:
        if part.day != day or part.arm:
            continue
        for task, figures in part.tasks.items():
            of_version = {"model": model, "version": part.version}
            labels = [output.labels for output in figures.outputs.values()]
            if figures.ne is not None and max(labels, default=0) >= MIN_LABELS:
                yield Sample("ranking_observed_ne", {**of_version, "task": task}, figures.ne.value)
            for output, of_output in figures.outputs.items():
                if of_output.calibration is not None and of_output.labels >= MIN_LABELS:
                    value = of_output.calibration.value
                    yield Sample("ranking_observed_calibration_ratio", {**of_version, "task": output}, value)
    if day is not None:
        end = calendar.timegm((day + timedelta(days=1)).timetuple())
        yield Sample("ranking_observed_day_end_timestamp_seconds", {"model": model}, end)
