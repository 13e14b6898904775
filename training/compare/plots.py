"""The plots of a report, as PNG bytes: differences from the baseline with every seed, and quality against cost.

In: entries of results.json. matplotlib's Agg canvas draws without a display and without global state.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from training.inspect.plots import as_png

Json = dict[str, Any]
# Okabe and Ito's blue and orange: distinct to colour-blind readers.
BLUE, ORANGE = "#0072B2", "#D55E00"
MARKERS = "DosX"


def differences(tables: Mapping[str, Json], baseline: str, metric: str) -> bytes | None:
    """One panel per task: each network's difference from the baseline, mean with interval over seeds, dots for seeds.

    None where nothing was compared."""
    panels = {
        task: entries for task, entries in tables.items() if any("against_baseline" in e for e in entries.values())
    }
    if not panels:
        return None
    names = list(dict.fromkeys(name for entries in panels.values() for name in entries if name != baseline))
    figure = Figure(figsize=(3.2 * len(panels) + 2, 0.4 * len(names) + 1.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (task, entries) in zip(axes, panels.items(), strict=True):
        axis.axvline(0.0, color="black", linewidth=0.8)
        base = entries[baseline]["values"]
        for row, name in enumerate(names):
            entry = entries.get(name, {})
            found = entry.get("against_baseline")
            if found is None:
                continue
            seeds = [value - base[seed] for seed, value in entry["values"].items() if seed in base]
            axis.plot(seeds, [row] * len(seeds), "o", color=BLUE, alpha=0.25, markersize=4)
            if found["low"] is not None:
                axis.plot([found["low"], found["high"]], [row, row], color=BLUE, linewidth=2)
            axis.plot([found["difference"]], [row], "D", color=ORANGE, markersize=5)
        axis.set_title("mean over tasks" if task == "mean" else task, fontsize=10)
        axis.set_xlabel(f"{metric} minus {baseline}'s", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    return as_png(figure)


def quality_against_cost(
    entries: Mapping[str, Json], ms: Mapping[str, float], front: Sequence[str], metric: str, candidates: int
) -> bytes:
    """The metric's mean and interval over seeds against CPU milliseconds of a request, and the line of the front."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.plot(
        [ms[name] for name in front], [entries[name]["mean"] for name in front], color="0.7", linewidth=1, zorder=0
    )
    for number, (name, entry) in enumerate(entries.items()):
        colour, marker = f"C{number % 10}", MARKERS[number // 10 % len(MARKERS)]
        if entry["low"] is not None:
            axis.plot([ms[name]] * 2, [entry["low"], entry["high"]], color=colour, linewidth=1.5, alpha=0.6)
        axis.plot([ms[name]], [entry["mean"]], marker, color=colour, markersize=6, label=name)
    axis.set_xlabel(f"CPU ms of a request with {candidates} candidates")
    axis.set_ylabel(metric)
    axis.grid(alpha=0.3)
    # Beside the plot: networks of one size would print their names over each other.
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return as_png(figure)
