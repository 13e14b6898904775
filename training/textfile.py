"""Metrics of a job that has ended: a file for the textfile collector of Prometheus' node exporter.

In: help texts by metric, and samples. Out: the file in Prometheus' text format, all of it gauges.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from training.files import replace_file


class Sample(NamedTuple):
    """A metric's value under its labels."""

    metric: str
    labels: Mapping[str, str]
    value: float


def write_textfile(path: Path, help_texts: Mapping[str, str], samples: Iterable[Sample]) -> None:
    """Write the metrics, whole. Each metric of `help_texts` is named, also one without a sample."""
    lines: dict[str, list[str]] = {name: [] for name in help_texts}
    for sample in samples:
        labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels.items())
        lines[sample.metric].append(f"{sample.metric}{{{labels}}} {sample.value:.10g}")
    text = []
    for name, found in lines.items():
        text += [f"# HELP {name} {help_texts[name]}", f"# TYPE {name} gauge", *found]
    replace_file(path, ("\n".join([*text, ""]).encode(),))


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
