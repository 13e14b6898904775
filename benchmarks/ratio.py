"""Means with the interval that their turns or seeds give them, and ratios of times taken in the same turns."""

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

# Turns of short calls before those that count.
_WARM = 20


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


def random_turns(
    ways: Mapping[str, Callable[[], object]],
    *,
    turns: int,
    seed: int,
    within: Callable[[str], AbstractContextManager[object]] = lambda way: nullcontext(),
) -> dict[str, list[float]]:
    """CPU microseconds of this thread for a call of each way, turn by turn, in random order within a turn. `within` is
    around each call, and is not timed."""
    spent: dict[str, list[float]] = {way: [] for way in ways}
    random = np.random.default_rng(seed)
    for turn in range(turns + _WARM):
        for way in random.permutation(list(ways)).tolist():
            with within(way):
                started = time.thread_time_ns()
                ways[way]()
                ended = time.thread_time_ns()
            if turn >= _WARM:
                spent[way].append((ended - started) / 1e3)
    return spent
