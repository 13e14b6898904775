"""The picture of the proof: realised value a request by day of each arm, what happened on which day, and beside it what
the two experiments and the estimate said of what is true.

In: the result of a run. Out: a PNG. matplotlib's Agg canvas draws without a display.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from deploy.loop.questions import BETTER, EQUAL

Json = Mapping[str, Any]
# Okabe and Ito's colours: distinct to colour-blind readers.
_ARMS = {
    "static": ("#56B4E9", "o", "never retrained"),
    "cold": ("#009E73", "s", "trained on the new tastes alone"),
    "loop": ("#D55E00", "D", "the loop"),
}
_FOUND = "#0072B2"
_EXPERIMENTS = {BETTER: "a better\nvalue model", EQUAL: "no change"}
_DPI = 100
# Arms stand beside each other within a day.
_STEP = 0.12


def draw(result: Json) -> bytes:
    """The picture."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    axes = figure.subplot_mosaic([["days", "experiments"], ["days", "exploration"]], width_ratios=[2.8, 1])
    _draw_days(axes["days"], result)
    _draw_experiments(axes["experiments"], result["experiments"])
    _draw_exploration(axes["exploration"], result["exploration"])
    figure.legend(
        *axes["days"].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9, frameon=False
    )
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()


def _draw_days(axis: Axes, result: Json) -> None:
    curves: Mapping[str, list[Json]] = result["curves"]
    for place, (name, days) in enumerate(curves.items()):
        colour, marker, label = _ARMS[name]
        shift = _STEP * (place - (len(curves) - 1) / 2)
        x = [day + shift for day in range(len(days))]
        means = [day["mean"] for day in days]
        reach = [[day["mean"] - day["low"] for day in days], [day["high"] - day["mean"] for day in days]]
        axis.errorbar(x, means, reach, color=colour, marker=marker, markersize=5, capsize=2, linewidth=1.5, label=label)
    low, high = axis.get_ylim()
    for text, day in result["happened"].items():
        axis.axvline(day - 0.5, color="black", linewidth=0.8, linestyle=":")
        axis.text(day - 0.45, high, text.replace(" ", "\n"), fontsize=8, verticalalignment="top")
    axis.set_ylim(low, high)
    axis.set_xticks(range(len(next(iter(curves.values())))))
    axis.set_xlabel("day of the town")
    axis.set_ylabel("realised value a request")
    axis.grid(axis="y", alpha=0.3)


def _draw_experiments(axis: Axes, experiments: Mapping[str, Json]) -> None:
    """Relative difference of the value, with its interval, and the true one."""
    intervals = [(_EXPERIMENTS[name], found["value"], found["true"]) for name, found in experiments.items()]
    _draw_intervals(axis, intervals)
    axis.axvline(0.0, color="black", linewidth=0.8)
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, 0))
    axis.set_title("experiments: difference of value", fontsize=9)


def _draw_exploration(axis: Axes, found: Json) -> None:
    """Value of the first places without exploration, estimated from explored requests, and the true one. In the title
    is what exploring cost."""
    low, high = found["price"]["low"], found["price"]["high"]
    _draw_intervals(axis, [("estimate", found["estimate"]["doubly_robust"], found["true"])])
    axis.set_xlabel(f"value of {found['places']} places without exploration", fontsize=8)
    price = f"{found['price']['mean']:+.1%} ({low:+.1%} to {high:+.1%})"
    axis.set_title(f"value of requests that explore:\n{price}", fontsize=9)


def _draw_intervals(axis: Axes, intervals: Sequence[tuple[str, Json | None, float]]) -> None:
    for place, (_, interval, true) in enumerate(intervals):
        if interval is not None and None not in interval.values():
            reach = [[interval["value"] - interval["low"]], [interval["high"] - interval["value"]]]
            axis.errorbar([interval["value"]], [place], xerr=reach, color=_FOUND, marker="o", markersize=5, capsize=3)
        axis.plot([true], [place], color="black", marker="x", markersize=7, linestyle="none")
    axis.set_yticks(range(len(intervals)), [name for name, _, _ in intervals], fontsize=8)
    axis.set_ylim(-0.6, len(intervals) - 0.4)
    axis.grid(axis="x", alpha=0.3)
