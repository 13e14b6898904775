"""Pictures of observed figures, as PNG: calibration and NE by day and version, effects by days since exposure."""

from collections.abc import Callable, Sequence
from datetime import date

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.inspect.plots import as_png
from training.observed.effects import Effect, outputs_of
from training.observed.figures import Interval, Part

COLUMNS = 3
# Of a difference: bounds of few users would leave nothing to be seen of the others.
MOST_PERCENT = 100


def plot_days(parts: Sequence[Part], names: Sequence[str], of_part: Callable[[Part, str], Interval | None]) -> bytes:
    """One panel a name: a line of each version and arm over the days, with its interval."""
    figure, axes = _panels(len(names))
    keys = sorted({(part.version, part.arm) for part in parts}, key=lambda key: (len(key[0]), key))
    days = sorted({part.day for part in parts})
    for name, axis in zip(names, axes, strict=True):
        axis.axhline(1.0, color="black", linewidth=0.8)
        for number, key in enumerate(keys):
            found = {part.day: of_part(part, name) for part in parts if (part.version, part.arm) == key}
            _draw_line(axis, days, found, f"C{number % 10}", f"version {key[0]} {key[1]}".strip())
        axis.set_title(name, fontsize=10)
        axis.set_xticks(range(len(days)), [f"{day:%d %b}" for day in days], rotation=60, fontsize=7)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return as_png(figure)


def plot_effects(effects: Sequence[Effect]) -> bytes:
    """One panel an output: its relative difference over the days since exposure, in percent, with bounds."""
    names = outputs_of(effects)
    figure, axes = _panels(len(names))
    for name, axis in zip(names, axes, strict=True):
        axis.axhline(0.0, color="black", linewidth=0.8)
        for effect in effects:
            if effect.output == name and effect.difference is not None:
                value, low, high = (100 * number for number in effect.difference)
                axis.plot([effect.day, effect.day], [low, high], color="C0", linewidth=2)
                axis.plot([effect.day], [value], "o", color="C1", markersize=5)
        axis.set_title(name, fontsize=10)
        axis.set_xticks(sorted({effect.day for effect in effects}))
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, -MOST_PERCENT), min(high, MOST_PERCENT))
        axis.set_xlabel("days since exposure", fontsize=8)
        axis.set_ylabel("difference, %", fontsize=8)
    return as_png(figure)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    rows = -(-count // COLUMNS)
    figure = Figure(figsize=(4.0 * min(count, COLUMNS), 2.9 * rows + 0.6), layout="constrained")
    axes = list(figure.subplots(rows, min(count, COLUMNS), squeeze=False).ravel())
    for axis in axes:
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def _draw_line(axis: Axes, days: Sequence[date], found: dict[date, Interval | None], colour: str, label: str) -> None:
    known = [(place, found[day]) for place, day in enumerate(days) if found.get(day) is not None]
    places = [place for place, _ in known]
    intervals = [interval for _, interval in known if interval is not None]
    axis.plot(places, [one.value for one in intervals], "o-", color=colour, markersize=4, linewidth=1.2, label=label)
    axis.vlines(places, [one.low for one in intervals], [one.high for one in intervals], color=colour, linewidth=1.5)
