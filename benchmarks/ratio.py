"""Means with the interval that their turns or seeds give them, and ratios of times taken in the same turns."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float]:
    """Mean and the half-width of its 95 % interval over seeds (Student's t)."""
    mean = statistics.fmean(values)
    spread = statistics.stdev(values) / len(values) ** 0.5
    return mean, float(student.ppf(0.975, len(values) - 1)) * spread


@dataclass(frozen=True)
class Ratio:
    """Ratio of one way's times to another's: geometric mean over turns with its 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, mine: Sequence[float], others: Sequence[float]) -> "Ratio":
        """Ratio from the times of the same turns."""
        logs = [math.log(one / other) for one, other in zip(mine, others, strict=True)]
        mean, half_width = mean_and_half_width(logs)
        return cls(math.exp(mean), math.exp(mean - half_width), math.exp(mean + half_width))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"
