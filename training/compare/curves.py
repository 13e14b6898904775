"""Curves: a metric of several networks against a number that describes them, modules per layer, say.

    curves: [{title: ..., metric: auc, x_label: modules per layer, points: {fixed_1: 1, fixed_2: 2}}]

In: the test split's tables of a results document. Out: every seed as a point, the mean with its interval per x, and a
least-squares cubic through all seeds (a lower degree where fewer than four x differ), as numbers and as a PNG. (The
form of Figure 3 of "Re-examining Routing Networks for Multi-task Learning".)
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.polynomial import Polynomial
from pydantic import Field

from model.schema import FeedSchema
from model.strict_yaml import StrictModel, unknown_key
from training.compare.document import Block, Heading, Image, Paragraph, Table
from training.compare.measures import METRICS, MetricName, TaskNames, measured_tasks
from training.compare.plots import BLUE, ORANGE
from training.compare.statistics import spread
from training.compare.tables import mean_over_tasks, used_tasks
from training.inspect.plots import as_png

Json = dict[str, Any]
DEGREE = 3


class Curve(StrictModel):
    """The mean of `metric` over `tasks` against x. `points` is network -> x."""

    title: str = Field(min_length=1)
    metric: MetricName = "auc"
    tasks: TaskNames = "all"
    x_label: str = Field(min_length=1)
    points: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(min_length=1)

    def check(self, networks: Sequence[str], metrics: Sequence[str]) -> None:
        """Raise ValueError for a network or metric that the experiment does not have."""
        for name in self.points:
            if name not in networks:
                raise ValueError(f"curves: {self.title}: points: " + unknown_key(name, list(networks), "network"))
        if self.metric not in metrics:
            raise ValueError(f"curves: {self.title}: metric '{self.metric}' is not among metrics; add it there")

    def check_tasks(self, schema: FeedSchema) -> None:
        """Raise ValueError for a task that the metric does not measure."""
        measured_tasks(f"curves: {self.title}", self.metric, self.tasks, schema)


def curve_results(curves: Sequence[Curve], tables: Mapping[str, Json]) -> list[Json]:
    """One entry per curve. `tables` are the test split's. The fit is null below two different x."""
    return [_result(curve, tables.get(curve.metric, {})) for curve in curves]


def _result(curve: Curve, table: Mapping[str, Json]) -> Json:
    tasks = used_tasks(table, curve.tasks)
    points: list[Json] = []
    for network, x in sorted(curve.points.items(), key=lambda point: point[1]):
        values = mean_over_tasks(table, tasks, network)
        if values:
            points.append({"network": network, "x": x, "values": values} | asdict(spread([*values.values()])))
    described = curve.model_dump(mode="json", exclude={"points"})
    return {**described, "used_tasks": tasks, "points": points, "fit": fit(_seeds(points))}


def fit(seeds: Sequence[tuple[float, float]]) -> Json | None:
    """The least-squares polynomial through (x, value). It has the coefficients of x**0, x**1, ..., and the residuals'
    standard deviation over the degrees of freedom left (null where none is)."""
    if not seeds:
        return None
    x, values = (np.array(column, np.float64) for column in zip(*seeds, strict=True))
    degree = min(DEGREE, len(np.unique(x)) - 1)
    if degree < 1:
        return None
    line = Polynomial.fit(x, values, degree)
    left = len(x) - degree - 1
    residual_sd = math.sqrt(float(np.sum((values - line(x)) ** 2)) / left) if left else None
    return {"degree": degree, "coefficients": line.convert().coef.tolist(), "residual_sd": residual_sd}


def curve_blocks(results: Sequence[Json]) -> Iterator[Block]:
    """The report's tables and plots of curves, nothing where there are none."""
    for found in results:
        metric = METRICS[found["metric"]].title
        yield Heading(3, f"{found['title']}, test split")
        if not found["points"]:
            yield Paragraph(f"{metric} is undefined on the test split, or no network of the curve is finished.")
            continue
        yield Paragraph(
            f"{metric}, mean over {', '.join(found['used_tasks'])}, 95 % intervals over seeds. {_fit_words(found)}"
        )
        rows = [
            [point["network"], f"{point['x']:g}", str(point["n"]), f"{point['mean']:.5f}", _interval(point)]
            for point in found["points"]
        ]
        yield Table(["network", found["x_label"], "seeds", f"mean {metric}", "95 % over seeds"], rows)
        yield Image(found["title"], plot(found))


def plot(found: Json) -> bytes:
    """Every seed a point, and the fitted line."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    x, values = zip(*_seeds(found["points"]), strict=True)
    axis.plot(x, values, "o", color=BLUE, alpha=0.4, markersize=4, label="one seed")
    axis.plot(
        [point["x"] for point in found["points"]],
        [point["mean"] for point in found["points"]],
        "D",
        color=ORANGE,
        markersize=5,
        label="mean over seeds",
    )
    if found["fit"] is not None:
        dense = np.linspace(min(x), max(x), 200)
        axis.plot(dense, Polynomial(found["fit"]["coefficients"])(dense), color="black", linewidth=1, label="fit")
    axis.set_xlabel(found["x_label"])
    axis.set_ylabel(f"mean {METRICS[found['metric']].title} (test)")
    axis.set_title(found["title"], fontsize=10)
    axis.legend(fontsize=8, frameon=False)
    axis.grid(alpha=0.3)
    return as_png(figure)


def _seeds(points: Sequence[Json]) -> list[tuple[float, float]]:
    return [(point["x"], value) for point in points for value in point["values"].values()]


def _interval(point: Json) -> str:
    return "-" if point["low"] is None else f"{point['low']:.5f}..{point['high']:.5f}"


def _fit_words(found: Json) -> str:
    if found["fit"] is None:
        return "No line through points of one x."
    terms = ", ".join(f"{value:.4g}" for value in found["fit"]["coefficients"])
    return (
        f"The line is the least-squares polynomial of degree {found['fit']['degree']} (coefficients from x^0: {terms})."
    )
