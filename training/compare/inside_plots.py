"""Pictures of a comparison over training and inside its networks, as PNG bytes.

In: entries of results.json. Curves have the training rows seen on their x axis.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.compare.resampling import MEAN
from training.inspect.plots import CELL_HEIGHT, CELL_WIDTH, MARGIN, as_png, heat_map

Json = dict[str, Any]
Style = str | tuple[int, tuple[int, ...]]
# Line styles distinguish levels, layers and tasks. Colours, then markers, distinguish networks.
STYLES: tuple[Style, ...] = (
    "solid",
    "dashed",
    "dotted",
    "dashdot",
    (0, (5, 1)),
    (0, (1, 4)),
    (0, (5, 1, 1, 1, 1, 1)),
    (0, (8, 4)),
)
MARKERS = "osD^"
# Panels side by side.
COLUMNS = 3
# Seeds side by side that one picture shows.
SEEDS = 10
TITLES = {
    "gate_entropy_level": "gate entropy (nats)",
    "experts_used_level": "experts used",
    "policy_perplexity_layer": "policy perplexity",
    "placebo_perplexity_layer": "policy perplexity by chance (placebo)",
    "balancing_weight": "balancing weight",
}


def plot_over_training(during: Json, baseline: str) -> bytes | None:
    """A panel per task: each network's percent difference from the baseline against rows, with its interval over seeds.

    None where nothing was compared."""
    panels = {
        task: compared
        for task, by_network in during["tasks"].items()
        if (compared := {name: curve for name, entries in by_network.items() if (curve := _curve(during, entries))})
    }
    if not panels:
        return None
    figure, axes = _panels(len(panels))
    names = list(dict.fromkeys(name for by_network in panels.values() for name in by_network))
    # Side by side, or intervals would hide each other.
    step = 0.25 * during["points"][-1]["rows"] / len(during["points"]) / len(names)
    for axis, (task, by_network) in zip(axes, panels.items(), strict=True):
        axis.axhline(0.0, color="black", linewidth=0.8)
        for name, (rows, percents, halves) in by_network.items():
            number = names.index(name)
            shifted = [value + (number - (len(names) - 1) / 2) * step for value in rows]
            style: dict[str, Any] = {
                "color": _color(number),
                "marker": _marker(number),
                "markersize": 3,
                "linewidth": 1.2,
            }
            axis.errorbar(shifted, percents, yerr=halves, capsize=2, elinewidth=0.7, **style)
        axis.set_title("mean over tasks" if task == MEAN else task, fontsize=10)
        _label(axis, f"% difference from {baseline}")
    _legend(figure, axes[0], names, {})
    return as_png(figure)


def _curve(during: Json, entries: Sequence[Json | None]) -> tuple[list[int], list[float], list[float]] | None:
    """Rows, percents and halves of intervals (0 where there is none) of the points that were compared."""
    found = [
        (point["rows"], entry["against_baseline"])
        for point, entry in zip(during["points"], entries, strict=True)
        if entry is not None and "against_baseline" in entry
    ]
    if not found:
        return None
    halves = [0.0 if one["percent_low"] is None else one["percent_high"] - one["percent"] for _, one in found]
    return [rows for rows, _ in found], [one["percent"] for _, one in found], halves


def plot_inside_over_training(during: Json) -> bytes | None:
    """Panels for gate entropy, experts used, policy perplexity and balancing weights, means over seeds. None without.

    A level, layer or task is a line style of its network's colour."""
    panels: dict[str, list[tuple[str, str, list[float]]]] = {}
    for column, by_network in during["inside"].items():
        kind = next(kind for kind in TITLES if column.startswith(kind))
        part = column.removeprefix(kind).removeprefix("_")
        for network, values in by_network.items():
            curve = [float("nan") if value is None else value for value in values]
            panels.setdefault(kind, []).append((network, part, curve))
    if not panels:
        return None
    figure, axes = _panels(len(panels))
    rows = [point["rows"] for point in during["points"]]
    names = list(dict.fromkeys(name for lines in panels.values() for name, _, _ in lines))
    styles: dict[str, Style] = {}
    for axis, (kind, lines) in zip(axes, panels.items(), strict=True):
        parts = list(dict.fromkeys(part for _, part, _ in lines))
        for name, part, curve in lines:
            style, number = STYLES[parts.index(part) % len(STYLES)], names.index(name)
            axis.plot(rows, curve, linestyle=style, color=_color(number), marker=_marker(number), markersize=3)
        axis.set_title(TITLES[kind], fontsize=10)
        what = kind.split("_")[-1] if kind != "balancing_weight" else "task"
        styles |= {f"{what} {part}": STYLES[i % len(STYLES)] for i, part in enumerate(parts)}
        _label(axis, "mean over seeds")
    _legend(figure, axes[0], names, styles)
    return as_png(figure)


def plot_policy_likeness(by_seed: Mapping[str, Sequence[Json]], title: str) -> bytes:
    """Cosines between the tasks' policies: a row per routed layer, a column per seed (at most SEEDS of them)."""
    seeds = list(by_seed)[:SEEDS]
    layers = len(by_seed[seeds[0]])
    tasks = by_seed[seeds[0]][0]["tasks"]
    cell = max(len(tasks) * CELL_WIDTH * 0.7, 1.6)
    height = layers * (len(tasks) * CELL_HEIGHT * 0.9 + 0.6) + MARGIN
    figure = Figure(figsize=(len(seeds) * cell + MARGIN, height), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(layers, len(seeds), squeeze=False)
    for column, seed in enumerate(seeds):
        for row, layer in enumerate(by_seed[seed]):
            axis = axes[row, column]
            # Names at the margin alone: one set for all.
            below = tasks if row == layers - 1 else [""] * len(tasks)
            heat_map(axis, np.array(layer["cosines"]), tasks if column == 0 else [""] * len(tasks), below, 1.0)
            axis.set_title(f"seed {seed}, layer {layer['layer']}", fontsize=8)
    return as_png(figure)


def _label(axis: Axes, y: str) -> None:
    axis.set_xlabel("training rows", fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
    axis.grid(alpha=0.3)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns, rows = min(count, COLUMNS), -(-count // COLUMNS)
    figure = Figure(figsize=(3.4 * columns + 2.4, 3.1 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for empty in axes[count:]:
        empty.set_axis_off()
    return figure, axes[:count]


def _color(number: int) -> str:
    return f"C{number % 10}"


def _marker(number: int) -> str:
    return MARKERS[number // 10 % len(MARKERS)]


def _legend(figure: Figure, axis: Axes, names: Sequence[str], styles: Mapping[str, Style]) -> None:
    """Networks by colour, then parts of them by line style, drawn beside the panels."""
    handles = [
        axis.plot([], [], color=_color(i), marker=_marker(i), markersize=3, label=name)[0]
        for i, name in enumerate(names)
    ]
    handles += [axis.plot([], [], color="grey", linestyle=style, label=part)[0] for part, style in styles.items()]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
