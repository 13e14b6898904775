"""Choice of the engine that is published: surely faster than TorchScript, or none.

In: CPU seconds of each engine in interleaved blocks, each engine once a round. Out: the ratio of two engines' times as
the median over rounds with a distribution-free interval, and the engine that those intervals decide for. A shared
machine slows a whole round, which the ratio within it does not see. What hits one block alone moves a median little.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import binom

from model.artifact.compiled import SpeedRatio

# Confidence that none of the engines compared was called faster by luck.
LEVEL = 0.99
ROUNDS = 41
SECONDS_PER_BLOCK = 0.01
# Usual numbers of candidates. A request of few costs its frame in every engine.
DECIDING_ROWS = (100, 500)

Block = Callable[[], float]
# CPU seconds a call, by engine and number of candidates, round by round.
Times = Mapping[str, Mapping[int, Sequence[float]]]


def block_of(call: Callable[[], object]) -> Block:
    """A block of calls: the CPU seconds that each takes."""

    def block() -> float:
        calls, started = 0, time.process_time()
        while (spent := time.process_time() - started) < SECONDS_PER_BLOCK:
            call()
            calls += 1
        return spent / calls

    return block


def interleaved(blocks: Mapping[str, Block], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Figures of each engine, round by round. Rounds run the engines in either order in turn. One before them warms
    up."""
    spent: dict[str, list[float]] = {name: [] for name in blocks}
    for turn in range(rounds + 1):
        for name in list(blocks)[:: 1 if turn % 2 else -1]:
            seconds = blocks[name]()
            if turn:
                spent[name].append(seconds)
    return spent


def ratio_of(mine: Sequence[float], others: Sequence[float], level: float = LEVEL) -> SpeedRatio:
    """The median ratio of times of the same rounds, and its interval at `level`.

    The interval's ends are order statistics (Conover, Practical Nonparametric Statistics, section 3.2): the true median
    is outside them as often as a fair coin shows so few heads, whatever the noise is distributed like. Raises
    ValueError for too few rounds to reach the level."""
    ratios = sorted(one / other for one, other in zip(mine, others, strict=True))
    rank = int(binom.ppf((1 - level) / 2, len(ratios), 0.5))
    if rank < 1:
        raise ValueError(f"{len(ratios)} rounds give no interval at {level:g}; measure more")
    middle, low, high = statistics.median(ratios), ratios[rank - 1], ratios[-rank]
    return SpeedRatio(ratio=round(middle, 4), low=round(low, 4), high=round(high, 4))


@dataclass(frozen=True)
class Choice:
    """The engine to publish, None where none is surely faster. `ratios` by engine and candidates, to the reference."""

    engine: str | None
    ratios: dict[str, dict[str, SpeedRatio]]

    def described(self) -> str:
        """Ratios and their intervals in words."""
        return ", ".join(
            f"{engine} at {rows} candidates {one.ratio:.3f} ({one.low:.3f} to {one.high:.3f})"
            for engine, by_rows in self.ratios.items()
            for rows, one in by_rows.items()
        )


def choose(times: Times, reference: str, rows: Sequence[int] = DECIDING_ROWS) -> Choice:
    """The fastest of the engines that are surely faster than the reference at each number of candidates.

    Engines stand from the most exact to the least. A less exact one has to be surely faster than the one it replaces.
    The level is shared among the comparisons with the reference."""
    engines = [name for name in times if name != reference]
    level = 1 - (1 - LEVEL) / max(1, len(engines))

    def ratios(mine: str, other: str) -> dict[str, SpeedRatio]:
        return {str(n): ratio_of(times[mine][n], times[other][n], level) for n in rows}

    def is_faster(by_rows: Mapping[str, SpeedRatio]) -> bool:
        return all(one.high < 1 for one in by_rows.values())

    against = {name: ratios(name, reference) for name in engines}
    chosen: str | None = None
    for name in engines:
        if is_faster(against[name]) and (chosen is None or is_faster(ratios(name, chosen))):
            chosen = name
    return Choice(chosen, against)
