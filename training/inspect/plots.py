"""Pictures as PNG: expert weights per fusion level, conflicts between tasks' gradients, routing policies.

In: what training/inspect/gates.py, conflicts.py and policies.py measured. Out: PNG bytes, for a file or inside a
report.

Shapes: T tasks, M modules, G fused units, E experts.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.inspect.conflicts import Conflicts
from training.inspect.gates import LevelGates
from training.inspect.policies import LayerPolicies

# Inches. A cell has a number of two decimals.
CELL_WIDTH, CELL_HEIGHT, MARGIN = 0.62, 0.42, 1.9
# Blue below 0, white at 0, red above.
COLORS = "RdBu_r"


def plot_expert_weights(levels: Sequence[LevelGates], title: str) -> bytes:
    """One heat map per level, the first on top: rows are fused units, columns experts."""
    widest = max(len(level.experts) for level in levels)
    height = sum(len(level.units) * CELL_HEIGHT + MARGIN for level in levels)
    figure = Figure(figsize=(widest * CELL_WIDTH + MARGIN + 1.0, height), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(levels), 1, squeeze=False)[:, 0]
    # One scale for all levels, so that a colour means one weight.
    limit = max(float(np.abs(level.weights_GE).max()) for level in levels)
    for number, (level, axis) in enumerate(zip(levels, axes, strict=True), start=1):
        heat_map(axis, level.weights_GE, level.units, level.experts, limit)
        axis.set_title(f"level {number}: mean weight (gate + native)", fontsize=10)
    return as_png(figure)


def plot_conflicts(conflicts: Conflicts, title: str) -> bytes:
    """Two heat maps of cosines: at the shared representation, and at the shared parameters."""
    tasks = conflicts.tasks
    width = 2 * (len(tasks) * CELL_WIDTH + MARGIN)
    figure = Figure(figsize=(max(width, 7.0), len(tasks) * CELL_HEIGHT + MARGIN + 0.5), layout="constrained")
    figure.suptitle(f"cosine of task gradients: {title}")
    left, right = figure.subplots(1, 2)
    for axis, matrix, place in (
        (left, conflicts.at_rows_TT, "representation"),
        (right, conflicts.at_parameters_TT, "parameters"),
    ):
        heat_map(axis, matrix, tasks, tasks, 1.0)
        axis.set_title(f"at the shared {place}", fontsize=10)
    return as_png(figure)


def plot_policies(layers: Sequence[LayerPolicies], title: str) -> bytes:
    """Per routed layer two heat maps: each task's chances of the modules, and the cosines between tasks."""
    num_tasks, num_modules = layers[0].chances_TM.shape
    width = (num_tasks + num_modules) * CELL_WIDTH + 2 * MARGIN
    height = len(layers) * (num_tasks * CELL_HEIGHT + MARGIN) + 0.5
    figure = Figure(figsize=(max(width, 7.0), height), layout="constrained")
    figure.suptitle(title)
    modules = [f"module {number}" for number in range(num_modules)]
    for policies, (left, right) in zip(layers, figure.subplots(len(layers), 2, squeeze=False), strict=True):
        heat_map(left, policies.chances_TM, policies.tasks, modules, 1.0)
        left.set_title(f"layer {policies.layer}: policy", fontsize=10)
        heat_map(right, policies.cosines_TT, policies.tasks, policies.tasks, 1.0)
        right.set_title(f"layer {policies.layer}: cosine between tasks", fontsize=10)
    return as_png(figure)


def plot_perplexity(
    by_layer: Mapping[int, Sequence[float]], placebos: Mapping[int, Sequence[float]], title: str
) -> bytes:
    """The perplexity of each routed layer's policies at each point of the log, dashed that of its placebo policies."""
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axis = figure.subplots()
    for number, (layer, values) in enumerate(by_layer.items()):
        points = range(1, len(values) + 1)
        axis.plot(points, values, marker="o", color=f"C{number}", label=f"layer {layer}")
        axis.plot(points, placebos[layer], linestyle="dashed", color=f"C{number}", label=f"layer {layer}, placebo")
    axis.set(title=title, xlabel="point of validation", ylabel="perplexity of the policies, mean over tasks")
    axis.set_ylim(bottom=1.0)
    axis.legend()
    return as_png(figure)


def heat_map(
    axis: Axes, matrix: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], limit: float
) -> None:
    """A matrix as colours with its numbers. NaN is `-`. Colours are full at +-`limit`."""
    axis.imshow(matrix, cmap=COLORS, vmin=-limit, vmax=limit, aspect="auto")
    axis.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    for row, column in np.ndindex(matrix.shape):
        value = matrix[row, column]
        shown = "-" if np.isnan(value) else f"{value:.2f}"
        # White on the dark ends of the scale.
        color = "white" if abs(value) > 0.6 * limit else "black"
        axis.text(column, row, shown, ha="center", va="center", fontsize=8, color=color)


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG."""
    content = io.BytesIO()
    # No version of the library in the file: the same numbers give the same bytes.
    figure.savefig(content, format="png", dpi=120, metadata={"Software": None})
    return content.getvalue()
