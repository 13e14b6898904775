"""The second paper's figures, as PNG bytes.

1 is perplexity of the policies by epoch. 2 and 4 are likeness of tasks. 3 is accuracy against the number of modules.

In: entries of results.json.

Shapes: T tasks.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.inspect.plots import as_png

# Inches of a heat map of all pairs of tasks.
PANEL = 2.6


BySeed = Mapping[str, Mapping[str, Sequence[float]]]


def perplexity(by_seed: BySeed, placebos: BySeed, title: str) -> bytes:
    """Each routed layer's mean over seeds, and every seed faintly. Dashed is the mean of its placebo policies."""
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axis = figure.subplots()
    layers = list(next(iter(by_seed.values())))
    for number, layer in enumerate(layers):
        lines = np.array([seed[layer] for seed in by_seed.values()])
        epochs = np.arange(1, lines.shape[1] + 1)
        axis.plot(epochs, lines.T, color=f"C{number}", alpha=0.25, linewidth=0.8)
        axis.plot(epochs, lines.mean(axis=0), color=f"C{number}", marker="o", markersize=3, label=layer)
        chance = np.array([seed[layer] for seed in placebos.values()]).mean(axis=0)
        axis.plot(epochs, chance, color=f"C{number}", linestyle="dashed", label=f"{layer}, placebo")
    axis.set(title=title, xlabel="epoch", ylabel="perplexity of the policies, mean over tasks")
    axis.set_ylim(bottom=0.9)
    axis.legend()
    return as_png(figure)


def similarities(by_seed: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], title: str) -> bytes:
    """One heat map [T, T] of cosines for each seed (columns) and routed layer (rows): light is the same policy."""
    layers = list(next(iter(by_seed.values())))
    figure = Figure(figsize=(len(by_seed) * PANEL + 1.0, len(layers) * PANEL + 0.6), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(len(layers), len(by_seed), squeeze=False)
    for row, layer in enumerate(layers):
        for column, (seed, cosines) in enumerate(by_seed.items()):
            axis = panels[row, column]
            image = axis.imshow(np.array(cosines[layer]), cmap="inferno", vmin=0.0, vmax=1.0)
            axis.set_title(f"{layer}, seed {seed}", fontsize=9)
            axis.tick_params(labelsize=6)
            for ticks in (axis.xaxis, axis.yaxis):
                ticks.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, ax=panels, shrink=0.8, label="cosine between tasks")
    return as_png(figure)


def module_counts(accuracies: Mapping[str, Sequence[float]], title: str) -> bytes:
    """Every seed's accuracy against the number of modules, from four numbers on with a cubic fit, as in the paper."""
    points = np.array([(float(count), value) for count, values in accuracies.items() for value in values])
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axis = figure.subplots()
    axis.plot(points[:, 0], points[:, 1], "o", alpha=0.6)
    if len(accuracies) > 3:
        fitted = np.polynomial.Polynomial.fit(points[:, 0], points[:, 1], 3)
        axis.plot(*fitted.linspace(100))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(title=title, xlabel="modules per routed layer", ylabel="accuracy, mean over tasks")
    return as_png(figure)
