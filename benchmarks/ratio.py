"""Means with the interval that their turns or seeds give them, and ratios of times taken in the same turns."""

import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
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


def in_turns(ways: Mapping[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Figures of each way, by turn. Every turn measures each once, in turns of either order, and one before the
    first warms up."""
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(-1, turns):
        for way in list(ways)[:: 1 if turn % 2 else -1]:
            one = ways[way]()
            if turn >= 0:
                spent[way].append(one)
        print(f"turn {turn + 1} of {turns}", file=sys.stderr)
    return spent
