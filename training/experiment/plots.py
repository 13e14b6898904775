"""Pictures of an analysis, as PNG: differences by metric with both intervals, and the value by days since exposure."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from training.experiment.contrasts import Contrast, Effect, Interval
from training.inspect.plots import as_png

# Of a difference: bounds of few users would leave nothing to be seen of the others.
MOST_PERCENT = 100


def plot_contrasts(contrasts: Sequence[Contrast]) -> bytes:
    """A line a metric and arm: the fixed interval thick, the sequence thin."""
    figure = Figure(figsize=(8.0, 0.5 * len(contrasts) + 1.2), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0.0, color="black", linewidth=0.8)
    for row, contrast in enumerate(contrasts):
        for interval, width, colour in ((contrast.sequence, 1.2, "C7"), (contrast.fixed, 4.0, "C0")):
            if interval is not None:
                value, low, high = _percent(interval)
                axis.plot([low, high], [row, row], color=colour, linewidth=width, solid_capstyle="butt")
                axis.plot([value], [row], "o", color="C1", markersize=5)
    axis.set_yticks(range(len(contrasts)), [f"{one.metric}, {one.arm}" for one in contrasts], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("difference from the control arm, %", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3, axis="x")
    return as_png(figure)


def plot_days(effects: Sequence[Effect]) -> bytes:
    """The value's difference over the days since exposure, an arm a colour."""
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.axhline(0.0, color="black", linewidth=0.8)
    arms = list(dict.fromkeys(effect.arm for effect in effects))
    for effect in effects:
        place = arms.index(effect.arm)
        if effect.difference is not None:
            value, low, high = _percent(effect.difference)
            at = effect.day + 0.1 * place
            axis.plot([at, at], [low, high], color=f"C{place}", linewidth=2)
            axis.plot(
                [at], [value], "o", color=f"C{place}", markersize=5, label=effect.arm if effect.day == 0 else None
            )
    axis.set_xticks(sorted({effect.day for effect in effects}))
    axis.set_xlabel("days since exposure", fontsize=8)
    axis.set_ylabel("difference of the value, %", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    if len(arms) > 1:
        axis.legend(fontsize=8, frameon=False)
    return as_png(figure)


def _percent(interval: Interval) -> tuple[float, float, float]:
    value, low, high = (max(-MOST_PERCENT, min(MOST_PERCENT, 100 * number)) for number in interval)
    return value, low, high
