"""Metrics by which networks are compared: value on a split, and the same on draws of whole groups.

Shapes: B rows whose label counts, O outputs of a task, G groups (users), R draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.metrics.bootstrap import Floats, Statistic
from training.metrics.metrics import Codes, divide

# labels_B, outputs_BO and the groups of the rows -> the metric, None where it is undefined.
Value = Callable[[Floats, Floats, NDArray[Any]], float | None]
# The same and the number of groups -> the metric on draws.
OnDraws = Callable[[Floats, Floats, Codes, int], Statistic]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of a kind of task: its name, which direction is better, its value, and when it is undefined.

    `on_draws` is None where neither direction is better, so that runs are not compared by it."""

    title: str
    better: Literal["higher", "lower"] | None
    value: Value
    on_draws: OnDraws | None
    undefined: str


def mean_on_draws(of_rows: Callable[[Floats, Floats], NDArray[Any]]) -> OnDraws:
    """The metric that is a mean over rows, of what each row's label and outputs give."""

    def on_draws(labels_B: Floats, outputs_BO: Floats, codes_B: Codes, num_groups: int) -> Statistic:
        rows_G = np.bincount(codes_B, minlength=num_groups).astype(np.float64)
        sums_G = np.bincount(codes_B, of_rows(labels_B, outputs_BO), num_groups)
        return lambda draws_RG: divide(draws_RG @ sums_G, draws_RG @ rows_G)

    return on_draws
