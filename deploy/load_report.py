"""Report of a load: percentiles by HDR histograms, errors by kind, tables, JSON and pictures.

In: the outcomes of steps of load. Out: a `Step` each, whose `document` is the JSON's, a table for the console, a PNG.
Units: seconds inside, milliseconds where they are shown.

Shapes: R requests.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
from hdrh.histogram import HdrHistogram
from rich.table import Table

from deploy.open_loop import FAILED, TIMED_OUT, Outcome

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
_DIGITS = 3
_MOST_MICROSECONDS = 3_600_000_000
_KINDS = {FAILED: "refused or cut off", TIMED_OUT: "no answer in time"}


@dataclass(frozen=True)
class Step:
    """Load at one rate for so many seconds, and its outcome. `cpu_seconds` is the service's where it is known."""

    rate: float
    seconds: float
    outcome: Outcome
    cpu_seconds: float | None = None
    histogram: HdrHistogram = field(init=False)

    def __post_init__(self) -> None:
        # Three digits at any latency, from a microsecond on: a tail is not rounded into its neighbours.
        histogram = HdrHistogram(1, _MOST_MICROSECONDS, _DIGITS)
        for seconds in self.outcome.of(200):
            histogram.record_value(min(_MOST_MICROSECONDS, max(1, round(seconds * 1e6))))
        object.__setattr__(self, "histogram", histogram)

    def percentile(self, percent: float) -> float | None:
        """Seconds until so many per cent of the answers with status 200 were there. None without any."""
        if not self.histogram.get_total_count():
            return None
        return float(self.histogram.get_value_at_percentile(percent)) / 1e6

    @property
    def statuses(self) -> dict[int, int]:
        """Count of requests by status."""
        found, counts = np.unique(self.outcome.status_R, return_counts=True)
        return dict(zip(found.tolist(), counts.tolist(), strict=True))

    @property
    def error_share(self) -> float:
        """Share of requests that did not end with 200."""
        return 1 - self.statuses.get(200, 0) / max(1, len(self.outcome.status_R))

    def is_within(self, slo: float, errors: float) -> bool:
        """True for a p99 within `slo` seconds and a share of errors within `errors`."""
        p99 = self.percentile(99)
        return p99 is not None and p99 <= slo and self.error_share <= errors

    def document(self) -> dict[str, Any]:
        """All of it, for JSON. `histogram` is HdrHistogram's own compressed form of microseconds."""
        number = len(self.outcome.due_R)
        return {
            "offered_per_second": self.rate,
            "seconds": self.seconds,
            "requests": number,
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "answered_per_second": self.statuses.get(200, 0) / self.seconds,
            "latency_ms": {f"p{percent:g}": _milliseconds(self.percentile(percent)) for percent in (*PERCENTILES, 100)},
            "histogram": self.histogram.encode().decode("ascii"),
            "client_lateness_ms": self.outcome.lateness * 1e3,
            "cpu_ms_per_request": None if self.cpu_seconds is None else self.cpu_seconds / max(1, number) * 1e3,
            "said": {str(status): text for status, text in self.outcome.said.items()},
        }


def kind(status: int) -> str:
    """Meaning of a status, in words."""
    if status in _KINDS:
        return _KINDS[status]
    known = {one.value: one.phrase for one in HTTPStatus}
    return f"{status} {known.get(status, '')}".strip()


def table(steps: Sequence[Step], slo: float | None, errors: float) -> Table:
    """A row for each step."""
    shown = Table(title="latency in ms, from the moment a request was due", title_justify="left")
    heads = ["offered/s", "requests", "200/s", *(f"p{percent:g}" for percent in PERCENTILES), "max", "CPU ms each"]
    for head in (*heads, "errors", "client late", *([] if slo is None else ["holds"])):
        shown.add_column(head, justify="right")
    for step in steps:
        document = step.document()
        cpu = document["cpu_ms_per_request"]
        shown.add_row(
            f"{step.rate:,.1f}",
            f"{document['requests']:,}",
            f"{document['answered_per_second']:,.1f}",
            *("-" if value is None else f"{value:,.1f}" for value in document["latency_ms"].values()),
            "-" if cpu is None else f"{cpu:.2f}",
            f"{step.error_share:.2%}",
            f"{document['client_lateness_ms']:.1f}",
            *([] if slo is None else ["yes" if step.is_within(slo, errors) else "no"]),
        )
    return shown


def write(folder: Path, steps: Sequence[Step], about: dict[str, Any], slo: float | None) -> None:
    """Write load_test.json and load_test.png. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {**about, "steps": [step.document() for step in steps]}
    (folder / "load_test.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    _draw(folder / "load_test.png", steps, slo)


def _draw(path: Path, steps: Sequence[Step], slo: float | None) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0 if len(steps) == 1 else 12.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 1 if len(steps) == 1 else 2, squeeze=False)[0]
    for step in steps:
        sorted_R = np.sort(step.outcome.of(200)) * 1e3
        if len(sorted_R):
            # 1 / (1 - share): each decade is one nine more, as HDR plots have it.
            nines_R = len(sorted_R) / np.arange(len(sorted_R), 0, -1)
            axes[0].plot(nines_R, sorted_R, label=f"{step.rate:,.0f}/s")
    axes[0].set(xscale="log", xlabel="percentile", ylabel="latency, ms")
    ticks = (1, 2, 10, 100, 1_000, 10_000)
    axes[0].set_xticks(ticks, ["0", "50", "90", "99", "99.9", "99.99"])
    if axes[0].lines:
        axes[0].legend(title="offered")
    if len(steps) > 1:
        ordered = sorted((step for step in steps if step.percentile(50) is not None), key=lambda step: step.rate)
        rates = [step.rate for step in ordered]
        for percent in (50.0, 99.0):
            values = [(step.percentile(percent) or 0.0) * 1e3 for step in ordered]
            axes[1].plot(rates, values, marker="o", label=f"p{percent:g}")
        axes[1].set(xlabel="offered, requests a second", ylabel="latency, ms", yscale="log" if ordered else "linear")
        if ordered:
            axes[1].legend()
    if slo is not None:
        for one in axes:
            one.axhline(slo * 1e3, color="grey", linestyle="--")
    figure.savefig(path, dpi=120)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
