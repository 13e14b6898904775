"""observed.prom: the newest day's figures of every version, for the textfile collector of Prometheus' node exporter."""

import calendar
from datetime import date, timedelta
from pathlib import Path

from training.files import replace_file
from training.observed.figures import Observed
from training.observed.metrics import METRICS

NAME = "observed.prom"
# Of fewer labels a ratio says little, and would wake somebody for chance.
MIN_LABELS = 100


def newest_day(observed: Observed) -> date | None:
    """The newest whole day, or the newest one where none is whole."""
    whole = [day for day, hours in observed.hours.items() if hours == 24]
    return max(whole or observed.hours, default=None)


def write_textfile(path: Path, observed: Observed, model: str) -> None:
    """Write the metrics, whole."""
    day = newest_day(observed)
    lines: dict[str, list[str]] = {name: [] for name in METRICS}
    for part in observed.parts:
        if part.day != day or part.arm:
            continue
        for task, figures in part.tasks.items():
            labels = [output.labels for output in figures.outputs.values()]
            if figures.ne is not None and max(labels, default=0) >= MIN_LABELS:
                lines["ranking_observed_ne"].append(f"{_labels(model, part.version, task)} {figures.ne.value:.6g}")
            for output, of_output in figures.outputs.items():
                if of_output.calibration is not None and of_output.labels >= MIN_LABELS:
                    lines["ranking_observed_calibration_ratio"].append(
                        f"{_labels(model, part.version, output)} {of_output.calibration.value:.6g}"
                    )
    if day is not None:
        end = calendar.timegm((day + timedelta(days=1)).timetuple())
        lines["ranking_observed_day_end_timestamp_seconds"].append(f'{{model="{_escaped(model)}"}} {end}')
    text = []
    for name, samples in lines.items():
        text += [f"# HELP {name} {METRICS[name]}", f"# TYPE {name} gauge", *(f"{name}{sample}" for sample in samples)]
    replace_file(path, ("\n".join([*text, ""]).encode(),))


def _labels(model: str, version: str, task: str) -> str:
    pairs = (("model", model), ("version", version), ("task", task))
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
