"""Quality gate: intervals against those of a linearised quotient, and what is refused for which reason.

Shapes: U users, N rows.
"""

import re

import numpy as np
import pytest

from tests.training.judge.arms import CLICK, rows_of
from training.judge.quality_gate import quality_gate, rows_needed
from training.judge.settings import QualityGate
from training.judge.users import TaskSums

SETTINGS = QualityGate()
KINDS = {"click": CLICK}


def _answered(users: int, noise: float, seed: int) -> dict[str, TaskSums]:
    """The same rows for all, answered with noise on the true logit."""
    users_N, probabilities_N, clicks_N = rows_of(2, users)
    noise_N = noise * np.random.default_rng(seed).standard_normal(len(users_N))
    answers_N = 1 / (1 + (1 - probabilities_N) / probabilities_N * np.exp(-noise_N))
    return {"click": TaskSums.of_rows(CLICK, clicks_N, answers_N[:, None], users_N, users)}


def test_an_equal_challenger_passes_and_its_interval_is_that_of_the_quotient() -> None:
    own, other = _answered(3000, 0.25, 5), _answered(3000, 0.25, 6)
    verdict = quality_gate(own, {"3": other}, KINDS, SETTINGS)
    assert verdict.passed
    assert not verdict.reasons
    found = verdict.figures["3"]["click"]
    losses_U, others_U = own["click"].loss_U, other["click"].loss_U
    ratio = losses_U.sum() / others_U.sum()
    error = np.sqrt(((losses_U - ratio * others_U) ** 2).sum()) / others_U.sum()
    assert found["difference"] == pytest.approx(ratio - 1)
    # A thousand draws know an end of an interval to about a twentieth of its half-width.
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.96 * error, rel=0.12)


def test_a_worse_challenger_is_refused_against_the_champion_that_it_is_worse_than() -> None:
    champions = {"3": _answered(3000, 0.9, 6), "2": _answered(3000, 0.1, 7)}
    verdict = quality_gate(_answered(3000, 0.9, 5), champions, KINDS, SETTINGS)
    assert not verdict.passed
    [reason] = verdict.reasons
    assert "version 2" in reason
    assert "at most +2.00%" in reason


def test_an_interval_that_is_too_wide_says_how_many_rows_it_takes() -> None:
    few = quality_gate(_answered(60, 0.7, 8), {"3": _answered(60, 0.7, 9)}, KINDS, SETTINGS)
    assert not few.passed
    [reason] = few.reasons
    found = re.search(r"too wide to tell by ([\d,]+) rows; it would take about ([\d,]+)", reason)
    assert found is not None
    rows, needed = (int(number.replace(",", "")) for number in found.groups())
    assert needed > rows
    users = round(60 * needed / rows * 1.3)  # the difference of the larger sample is another one
    assert quality_gate(_answered(users, 0.7, 8), {"3": _answered(users, 0.7, 9)}, KINDS, SETTINGS).passed


@pytest.mark.parametrize(
    ("difference", "high", "expected"), [(0.0, 0.04, 4000), (0.01, 0.04, 9000), (-0.01, 0.03, 4000), (0.03, 0.05, None)]
)
def test_rows_needed_follow_the_square_of_the_half_width(difference: float, high: float, expected: int | None) -> None:
    assert rows_needed(difference, high, 1000, 0.02) == pytest.approx(expected)


def test_what_cannot_be_compared_is_refused_or_left_out_in_words() -> None:
    own = _answered(200, 0.1, 5)
    assert quality_gate(own, {"3": {}}, KINDS, SETTINGS).passed
    users_N, probabilities_N, _ = rows_of(2, 200)
    alike = {"click": TaskSums.of_rows(CLICK, np.zeros(len(users_N)), probabilities_N[:, None], users_N, 200)}
    verdict = quality_gate(alike, {"3": alike}, KINDS, SETTINGS)
    assert not verdict.passed
    assert "alike" in verdict.reasons[0]
    with pytest.raises(ValueError, match="version 3 answered other rows of task click"):
        quality_gate(own, {"3": _answered(150, 0.1, 5)}, KINDS, SETTINGS)
