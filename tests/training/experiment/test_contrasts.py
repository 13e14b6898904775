"""Contrasts against scipy and plain formulas: intervals, the sample ratio, CUPED, Holm, and what is called when."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from tests.training.experiment.drawn import EPOCH, START
from training.experiment.contrasts import Analysis, adjusted, analyse, called
from training.experiment.question import Question
from training.experiment.users import Users
from training.judge.sample_ratio import sample_ratio_evidence
from training.judge.sequences import Bounds, Moments, fixed_difference


def question(shares: dict[str, float] | None = None, **changes: Any) -> Question:
    shares = shares or {"control": 0.5, "treatment": 0.5}
    given = {"end": None, "horizon": timedelta(days=1), "realised": {"click": 1.0}, **changes}
    return Question("bold", EPOCH, shares, START, **given)


def users_of(
    arms: list[np.ndarray[Any, Any]], before: list[np.ndarray[Any, Any]] | None = None, **changes: Any
) -> Users:
    """Users of arms with their values, in the order of arms."""
    arm_U = np.repeat(np.arange(len(arms)), [len(one) for one in arms])
    names = ["control", "treatment", "third"][: len(arms)]
    past = None if before is None else {"value": np.concatenate(before)}
    given: dict[str, Any] = {
        "exposed": {name: len(one) for name, one in zip(names, arms, strict=True)},
        "fell_back": dict.fromkeys(names, 0),
        "mixed": 0,
        "capped": 0,
        "left_out": {},
        "is_over": False,
        **changes,
    }
    was_there_U = np.ones(len(arm_U), bool) if before is not None else np.zeros(len(arm_U), bool)
    return Users(arm_U, {"value": np.concatenate(arms)}, past, was_there_U, [], **given)


def test_a_fixed_interval_is_fiellers() -> None:
    rng = np.random.default_rng(0)
    control, arm = rng.normal(10, 3, 4000), rng.normal(11, 4, 1000)
    found = fixed_difference(Moments.of_values(arm), Moments.of_values(control), 0.05)

    def excess(relative: float) -> float:
        """Squared studentised difference at a relative difference, less its limit."""
        error = arm.var(ddof=1) / len(arm) + (1 + relative) ** 2 * control.var(ddof=1) / len(control)
        return float((arm.mean() - (1 + relative) * control.mean()) ** 2 / error - stats.chi2.ppf(0.95, 1))

    estimate = arm.mean() / control.mean() - 1
    bounds = (optimize.brentq(excess, estimate - 0.2, estimate), optimize.brentq(excess, estimate, estimate + 0.2))
    assert float(found.estimate) == pytest.approx(estimate)
    # Skewness of normal values is chance's alone: the correction moves bounds by a hundredth of their distance.
    assert (float(found.lower), float(found.upper)) == pytest.approx(bounds, abs=0.01 * (bounds[1] - bounds[0]))


@pytest.mark.parametrize(
    ("counts", "shares"), [((500, 480), (0.5, 0.5)), ((90, 30, 25), (0.6, 0.2, 0.2)), ((70, 130), (0.5, 0.5))]
)
def test_the_evidence_of_a_sample_ratio_is_a_ratio_of_probabilities(
    counts: tuple[int, ...], shares: tuple[float, ...]
) -> None:
    mixed = stats.dirichlet_multinomial(1000 * np.array(shares), sum(counts)).logpmf(counts)
    drawn = stats.multinomial(sum(counts), shares).logpmf(counts)
    assert sample_ratio_evidence(counts, shares) == pytest.approx(np.exp(mixed - drawn), rel=1e-6)


def test_the_past_takes_out_what_it_explains_and_moves_no_difference() -> None:
    rng = np.random.default_rng(1)
    before = [rng.gamma(2.0, 3.0, size) for size in (3000, 2000)]
    arms = [1.5 * past + rng.normal(20 + place, 2, len(past)) for place, past in enumerate(before)]
    users = users_of(arms, before)
    adjusted_U, narrowing = adjusted(users, "value")
    # Variance of the past's part over all: 1.5^2 * 18 of 1.5^2 * 18 + 4.
    assert narrowing == pytest.approx(40.5 / 44.5, abs=0.01)
    assert np.mean(adjusted_U) == pytest.approx(np.mean(users.labels["value"]))
    residual_0 = stats.linregress(before[0], arms[0])
    assert adjusted_U[:3000].std() == pytest.approx(np.std(arms[0] - residual_0.slope * before[0]), rel=0.01)
    narrow, wide = (analyse(one, question()).contrasts[0] for one in (users, users_of(arms)))
    assert narrow.fixed is not None
    assert wide.fixed is not None
    widths = [one.high - one.low for one in (narrow.fixed, wide.fixed)]
    assert widths[0] / widths[1] == pytest.approx(np.sqrt(4 / 44.5), rel=0.05)
    assert narrow.fixed.low < 1 / 29 < narrow.fixed.high, "the treatment adds 1 to a mean of 29"


def test_holm_is_that_of_p_values() -> None:
    """By the definition: p-values in order, each at alpha over those that are left, until one is too large."""
    rng = np.random.default_rng(2)

    def bounds_of(arm: Moments, control: Moments, alpha: float) -> Bounds:
        z = float(arm.mean)
        margin = stats.norm.ppf(1 - alpha / 2)
        return Bounds(np.array(z), np.array(z - margin), np.array(z + margin), np.array(0.0))

    at_0 = Moments(*(np.array(0.0) for _ in range(4)))
    for _ in range(300):
        z_M = rng.normal(0, 2, 6)
        pairs: Any = {
            ("arm", str(place)): (
                lambda z: type(
                    "Pair", (), {"control": at_0, "arm": Moments(at_0.users, np.array(z), at_0.users, at_0.users)}
                )
            )(z)
            for place, z in enumerate(z_M)
        }
        p_M = 2 * stats.norm.sf(np.abs(z_M))
        expected = set()
        for step, place in enumerate(np.argsort(p_M)):
            if p_M[place] > 0.05 / (len(p_M) - step):
                break
            expected.add(("arm", str(place)))
        assert called(pairs, len(z_M), bounds_of) == expected


def _analysis(seed: int, effect: float, asked: Question, **changes: Any) -> Analysis:
    rng = np.random.default_rng(seed)
    arms = [rng.gamma(4.0, 1.0, 3000), rng.gamma(4.0, 1.0 + effect, 3000)]
    return analyse(users_of(arms, **changes), asked)


def test_an_experiment_with_an_end_is_called_after_it_alone() -> None:
    end = START + timedelta(days=7)
    for effect, call in ((0.2, "better"), (-0.2, "worse"), (0.0, None)):
        assert _analysis(3, effect, question()).contrasts[0].called == call
        assert _analysis(3, effect, question(end=end)).contrasts[0].called is None
        over = _analysis(3, effect, question(end=end), is_over=True)
        assert (over.method, over.contrasts[0].called) == ("fixed", call)


@pytest.mark.parametrize(
    ("realised", "call"),
    [({"click": 2.0}, "better"), ({"click": -2.0}, "worse"), ({"play": 1.0}, "higher"), (None, "higher")],
)
def test_more_of_a_label_is_better_or_worse_by_its_weight(realised: dict[str, float] | None, call: str) -> None:
    rng = np.random.default_rng(5)
    arms = [rng.gamma(4.0, 1.0, 3000), rng.gamma(4.0, 1.2, 3000)]
    users = users_of(arms)
    label = analyse(replace(users, labels={"click": users.labels["value"]}), question(realised=realised)).contrasts[0]
    assert (label.metric, label.called) == ("click", call)


def test_nothing_is_called_where_the_arms_are_not_what_they_were_to_be() -> None:
    off = _analysis(4, 0.3, question({"control": 0.6, "treatment": 0.4}))
    assert "are not as large as they were to be: control 3,000 (60.0% was said)" in off.faults[0]
    assert off.contrasts[0].called is None
    mixed = _analysis(4, 0.3, question(), mixed=400)
    assert "several arms answered 400 users" in mixed.faults[0]
    assert mixed.contrasts[0].called is None


def test_too_few_users_are_refused_with_how_many_it_takes() -> None:
    rng = np.random.default_rng(5)
    few = analyse(users_of([rng.gamma(4, 1, 99), rng.gamma(4, 1, 120)]), question())
    assert few.too_few is not None
    assert "takes 100 users" in few.too_few
    assert "control has 99" in few.too_few
    assert "200 users of the experiment" in few.too_few
    assert few.contrasts[0].called is None


def test_a_metric_that_few_users_make_is_doubted() -> None:
    rng = np.random.default_rng(6)
    whales = [rng.gamma(4, 1, size) for size in (20_000, 2000)]
    whales[1][:2] = 1e4
    (contrast,) = analyse(users_of(whales), question()).contrasts
    assert contrast.doubt is not None
    assert "few users have most of it" in contrast.doubt
    assert contrast.called is None
    none = analyse(users_of([np.zeros(3000), np.zeros(3000)]), question()).contrasts[0]
    assert none.doubt is not None
    assert none.called is None


def test_users_needed_are_those_at_which_the_interval_is_so_wide() -> None:
    rng = np.random.default_rng(7)
    (contrast,) = _analysis(8, 0.0, question()).contrasts
    needed = contrast.needed["0.02"]
    arms = [rng.gamma(4.0, 1.0, needed) for _ in range(2)]
    (there,) = analyse(users_of(arms), question()).contrasts
    assert there.fixed is not None
    # The variance of 3,000 users is known to some hundredths.
    assert (there.fixed.high - there.fixed.low) / 2 == pytest.approx(0.02, rel=0.1)
