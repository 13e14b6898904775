"""The choice of an engine: decided by speed, never by the draw of a busy machine."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from training.publish.engine_choice import DECIDING_ROWS, LEVEL, ROUNDS, choose, interleaved, ratio_of

MANY = 2000


def noisy(generator: np.random.Generator, share: float, machine: NDArray[np.float64]) -> list[float]:
    """Times of a made-up engine on a busy machine: heavy tails, and each tenth block twice as long."""
    own = np.exp(0.05 * generator.standard_t(2, len(machine))) * np.where(generator.random(len(machine)) < 0.1, 2, 1)
    return list(share * machine * own)


def times_of(generator: np.random.Generator, shares: dict[str, float]) -> dict[str, dict[int, list[float]]]:
    """Both sizes have the same draws: the worst case, where the second size corrects no error of the first."""
    machine = np.exp(0.3 * generator.standard_normal(ROUNDS))  # the speed of a round, the same for all its blocks
    times = {name: noisy(generator, share, machine) for name, share in shares.items()}
    return {name: dict.fromkeys(DECIDING_ROWS, seconds) for name, seconds in times.items()}


def test_engines_of_equal_speed_are_not_called_faster() -> None:
    generator = np.random.default_rng(5)
    wrong = single = 0
    for _ in range(MANY):
        times = times_of(generator, {"torchscript": 1.0, "float32": 1.0, "bfloat16": 1.0})
        wrong += choose(times, "torchscript").engine is not None
        single += times["float32"][500][0] < times["torchscript"][500][0]
    # Half of the level's share at most, as the other half would call them slower. Two standard deviations are left.
    expected = MANY * (1 - LEVEL) / 2
    assert wrong <= expected + 2 * expected**0.5
    # Whoever measures once draws lots.
    assert 0.4 * MANY < single < 0.6 * MANY


def test_a_faster_engine_is_found_in_the_same_noise() -> None:
    generator = np.random.default_rng(6)
    found = [
        choose(times_of(generator, {"torchscript": 1.0, "float32": 0.8, "bfloat16": 0.5}), "torchscript").engine
        for _ in range(200)
    ]
    assert found.count("bfloat16") >= 195


def test_a_less_exact_engine_has_to_be_surely_faster_than_the_one_it_replaces() -> None:
    generator = np.random.default_rng(7)
    found = [
        choose(times_of(generator, {"torchscript": 1.0, "float32": 0.6, "bfloat16": 0.6}), "torchscript").engine
        for _ in range(200)
    ]
    assert found.count("float32") >= 195


def test_an_engine_that_is_faster_at_one_size_alone_is_not_chosen() -> None:
    machine = [1.0 + 0.01 * n for n in range(ROUNDS)]
    half = [0.5 * one for one in machine]
    choice = choose({"torchscript": {100: machine, 500: machine}, "float32": {100: machine, 500: half}}, "torchscript")
    assert choice.engine is None
    assert choice.described() == (
        "float32 at 100 candidates 1.000 (1.000 to 1.000), float32 at 500 candidates 0.500 (0.500 to 0.500)"
    )


@pytest.mark.parametrize("level", [0.9, 0.99, 0.995])
def test_the_interval_leaves_the_median_out_as_seldom_as_it_says(level: float) -> None:
    """Of all places the median may have among ROUNDS draws, counted one by one."""
    mine = list(map(float, range(1, ROUNDS + 1)))
    one = ratio_of(mine, [1.0] * ROUNDS, level)
    below = round(one.low)  # draws at or below the lower end, as their values are their ranks
    outside = sum(math.comb(ROUNDS, heads) for heads in range(below)) / 2**ROUNDS
    next_outside = sum(math.comb(ROUNDS, heads) for heads in range(below + 1)) / 2**ROUNDS
    assert outside < (1 - level) / 2 <= next_outside
    assert (one.ratio, one.high) == ((ROUNDS + 1) / 2, ROUNDS + 1 - one.low)


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"5 rounds give no interval at 0\.99"):
        ratio_of([1.0] * 5, [2.0] * 5, 0.99)


def test_blocks_are_interleaved_and_the_first_round_is_not_counted() -> None:
    seen: list[str] = []

    def block(name: str) -> float:
        seen.append(name)
        return float(len(seen))

    spent = interleaved({"a": lambda: block("a"), "b": lambda: block("b")}, rounds=3)
    assert "".join(seen) == "baabbaab"
    assert spent == {"a": [3.0, 6.0, 7.0], "b": [4.0, 5.0, 8.0]}
