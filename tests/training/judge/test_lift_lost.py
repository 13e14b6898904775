"""Label rates and calibration of a day on which the version no longer finds what users like, by hand.

The version answers .1 to half of the rows and .3 to the other half. Usually labels are as it says, at a rate of .2. The
deviation of answers over their mean is .5. Choosing the best lifts answers by exp(2 sqrt(ln 1.25)) = 2.57 at most, so
that a shifted output may have .5 / 2.57 = .19 times the rate, and 2 * 2.57 = 5.14 times the calibration.

Follows are rare: .012 of the rows, by answers of .009 and .015. Their deviation is .25, and the lift 1.64.

Shapes: B rows.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from model.schema import FeedSchema
from training.data.kinds.columns import columns_from_arrow
from training.fit.tally import PartCounts, Tally
from training.judge.answers import sums_of_answers
from training.judge.data_gate import faults_of_day, outputs_shifted
from training.judge.day_figures import AnswerFigures, figures_of_answers
from training.judge.settings import DataGate

SCHEMA = FeedSchema.from_mapping(
    {
        "name": "feed",
        "features": [{"name": "user_id", "side": "candidate", "kind": "id", "buckets": 100, "dim": 4}],
        "tasks": [
            {"name": "like", "kind": "binary", "label": "is_like"},
            {"name": "follow", "kind": "binary", "label": "is_follow"},
        ],
    },
    "schema",
)
HALF = 6_000
RARE = (0.009, 0.015)


def _labels(low: float, high: float) -> npt.NDArray[np.int64]:
    return np.concatenate([np.arange(HALF) < round(rate * HALF) for rate in (low, high)]).astype(np.int64)


def _day(low: float, high: float, rare: tuple[float, float] = RARE) -> tuple[PartCounts, AnswerFigures]:
    """Counts and figures of a day on which labels have these rates, of lower and of higher answers."""
    users_B = np.random.default_rng(0).integers(0, 600, 2 * HALF)
    table = pa.table({"user_id": users_B, "is_like": _labels(low, high), "is_follow": _labels(*rare)})
    tally = Tally(SCHEMA, {}, 1)
    tally.add(table, columns_from_arrow(SCHEMA, table, is_coded=True), np.zeros(2 * HALF, np.int64))
    answers_BO = np.repeat([(0.1, RARE[0]), (0.3, RARE[1])], HALF, axis=0)
    answered = sums_of_answers(SCHEMA, {}, table, answers_BO, group_by="user_id")
    return tally.counts([[0]])[0], figures_of_answers(answered.sums, answered.kinds, answered.sums)


USUAL = (0.1, 0.3)


def _faults(low: float, high: float, rare: tuple[float, float] = RARE, *, usual_days: int = 1) -> list[str]:
    (day, own), (window, usual) = _day(low, high, rare), _day(*USUAL)
    as_gated = [usual] * usual_days
    return faults_of_day(SCHEMA, day, window, 0.0, own, [usual], DataGate(), as_gated=as_gated)[0]


def test_a_shifted_output_may_fall_as_far_as_choice_had_lifted_it() -> None:
    """A rate of .08 with a slope of .15: elasticity .375 of 1, calibration 2.5."""
    shifted = (0.065, 0.095)
    assert _day(*shifted)[1]["like"].outputs["like"].variation == pytest.approx(0.5)
    assert _faults(*shifted) == []
    # Without days to compare with nobody knows that it is shifted.
    rate, calibration = _faults(*shifted, usual_days=0)
    assert rate == "like: its labels' mean is 0.40 times the window's, between 0.5 and 2 may be"
    assert "like: the serving version's calibration is 2.50, and 1.00 on the days before" in calibration


def test_a_shifted_output_that_falls_further_is_refused() -> None:
    """A rate of .03: labels were lost as well."""
    faults = _faults(0.024, 0.036)
    assert "like: its labels' mean is 0.15 times the window's, between 0.19 and 2 may be" in faults
    assert any("calibration is 6.67, and 1.00 on the days before; between 0.5 and 5.14" in fault for fault in faults)


def test_lost_labels_are_no_shift_though_answers_explain_less_of_them() -> None:
    """Three of five likes are lost: the elasticity stays 1, and the correlation falls from .25 to .15."""
    lost = (0.04, 0.12)
    assert outputs_shifted(_day(*lost)[1], [_day(*USUAL)[1]]) == ["like"]
    faults = _faults(*lost)
    assert faults[0] == "like: its labels' mean is 0.40 times the window's, between 0.5 and 2 may be"
    assert "calibration is 2.50" in faults[1]


@pytest.mark.parametrize("rates", [(0.9, 0.7), (0.12, 0.04)], ids=["inverted", "against the answers at a low rate"])
def test_labels_against_the_answers_are_always_refused(rates: tuple[float, float]) -> None:
    assert any("labels go against the serving version's answers" in fault for fault in _faults(*rates))


def test_a_rate_that_rises_is_no_lift_that_was_lost() -> None:
    """Alike under all answers, at 2.5 times the rate: a shift, and yet beyond its bound."""
    assert outputs_shifted(_day(0.5, 0.5)[1], [_day(*USUAL)[1]]) == ["like"]
    assert "like: its labels' mean is 2.50 times the window's, between 0.19 and 2 may be" in _faults(0.5, 0.5)


def test_a_rare_output_may_fall_as_far_where_its_day_is_shifted() -> None:
    """Follows at .4 times their rate, alike under all answers: too few to tell that they follow less."""
    shifted, fallen = (0.065, 0.095), (0.0048, 0.0048)
    assert outputs_shifted(_day(*shifted, fallen)[1], [_day(*USUAL)[1]]) == ["like"]
    assert _faults(*shifted, fallen) == []
    # On a day like those before it labels that fall so far were lost.
    assert "follow: its labels' mean is 0.40 times the window's, between 0.5 and 2 may be" in _faults(*USUAL, fallen)
    # The lift has an end.
    further = (0.003, 0.003)
    assert "follow: its labels' mean is 0.25 times the window's, between 0.31 and 2 may be" in _faults(
        *shifted, further
    )


def test_a_rare_output_that_surely_follows_less_is_taken_as_its_day() -> None:
    """A week before tells that follows alike under all answers follow less. Their elasticity, 0 of 1, has an error of
    .5: follows that were lost may have it too. That of likes has fallen surely, as no loss of labels would have it."""
    shifted, fallen = (0.065, 0.095), (0.0048, 0.0048)
    before = [_day(*USUAL)[1]] * 7
    assert outputs_shifted(_day(*shifted, fallen)[1], before) == ["like", "follow"]
    assert _faults(*shifted, fallen, usual_days=7) == []
    # Where no other output has fallen so, they may be lost.
    assert outputs_shifted(_day(*USUAL, fallen)[1], before) == ["follow"]
    faults = _faults(*USUAL, fallen, usual_days=7)
    assert "follow: its labels' mean is 0.40 times the window's, between 0.5 and 2 may be" in faults
