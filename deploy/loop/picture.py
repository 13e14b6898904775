"""The picture of the proof: realised value a request by day of each arm, and what happened on which day.

In: the result of a run. Out: a PNG. matplotlib's Agg canvas draws without a display.
"""

import io
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

Json = Mapping[str, Any]
# Okabe and Ito's colours: distinct to colour-blind readers.
_ARMS = {
    "static": ("#56B4E9", "o", "never retrained"),
    "cold": ("#009E73", "s", "trained on the new tastes alone"),
    "loop": ("#D55E00", "D", "the loop"),
}
_DPI = 100
# Arms stand beside each other within a day.
_STEP = 0.12


def draw(result: Json) -> bytes:
    """The picture."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axis = figure.subplots()
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
        axis.text(day - 0.45, high, text, fontsize=8, verticalalignment="top")
    axis.set_ylim(low, high)
    axis.set_xticks(range(len(next(iter(curves.values())))))
    axis.set_xlabel("day of the town")
    axis.set_ylabel("realised value a request")
    axis.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(curves), fontsize=9, frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()
