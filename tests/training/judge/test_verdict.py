"""Verdicts of drawn users: what is withdrawn, promoted, or waits, for which reason.

Shapes: U users.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from model.value_models.answer_domain import AnswerDomain
from model.value_models.value_model import ValueModels
from tests.training.judge.arms import CLICK, arm_of, with_values
from training.judge.realised import realised_weights
from training.judge.sample_ratio import sample_ratio_evidence
from training.judge.settings import DataGate, JudgeSettings
from training.judge.users import Observed
from training.judge.verdict import judge, users_for
from training.tasks.learned import Floats

SETTINGS = JudgeSettings.from_mapping({"horizon": "24h", "at_most": "7d"}, "judge")


def _values(seed: int, users: int, factor: float = 1.0) -> Floats:
    rng = np.random.default_rng(seed)
    return factor * rng.lognormal(0.0, 1.0, users) * (rng.random(users) < 0.7)


@pytest.mark.parametrize(
    ("factor", "users", "decision"),
    [
        (1.0, 60_000, "promote"),
        (1.1, 60_000, "promote"),
        (0.9, 60_000, "withdraw"),
        # Both rules hold: the canary is surely worse, and surely by less than max_worse.
        (0.97, 200_000, "withdraw"),
        (0.9, 300, "wait"),
        (1.0, 1500, "wait"),
    ],
)
def test_a_verdict_follows_the_bounds(factor: float, users: int, decision: str) -> None:
    observed = with_values(_values(1, users, factor), _values(2, 4 * users))
    verdict = judge(observed, SETTINGS, {})
    assert verdict.decision == decision
    figures = verdict.figures["relative_difference"]
    assert figures["lower"] < figures["estimate"] < figures["upper"]
    ratio = observed.canary.values_U.mean() / observed.stable.values_U.mean()
    assert figures["estimate"] == pytest.approx(ratio - 1)
    assert verdict.reasons
    if decision == "wait":
        assert "canary users" in verdict.reasons[-1]


def test_the_users_that_a_question_takes_are_those_that_answer_it() -> None:
    few = with_values(_values(1, 1500), _values(2, 6000))
    needed = judge(few, SETTINGS, {}).figures["users_needed"]
    assert needed["stable"] == pytest.approx(4 * needed["canary"], abs=4)
    # With that many, the interval reaches max_worse below the estimate. Its skewness is small by then.
    many = with_values(_values(3, needed["canary"]), _values(4, needed["stable"]))
    figures = judge(many, SETTINGS, {}).figures["relative_difference"]
    assert figures["estimate"] - figures["lower"] == pytest.approx(SETTINGS.max_worse, rel=0.15)


def test_users_for_a_width_are_those_of_the_page() -> None:
    # Variation coefficient 1.5, a tenth of the users in the canary.
    variation = 1.5**2 / 0.9
    assert users_for(variation, 0.1) == pytest.approx(2000, rel=0.1)
    assert users_for(variation, 0.005) == pytest.approx(400 * users_for(variation, 0.1), rel=0.001)
    fixed = variation * (stats.norm.isf(0.05) / 0.1) ** 2
    # Looking at any time costs less than three times the users of looking once.
    assert fixed < users_for(variation, 0.1) < 3 * fixed


@pytest.mark.parametrize(
    ("observed", "words"),
    [
        (with_values(np.ones(40), np.ones(500)), "canary has 40 mature users"),
        (with_values(_values(1, 3000), _values(2, 3000), share=0.1), "not drawn by the share"),
        (with_values(_values(1, 500) - 1, _values(2, 4000) - _values(3, 4000)), "not surely above 0"),
        (with_values(np.eye(1, 5000)[0] * 9, _values(2, 5000)), "few users make up most"),
    ],
    ids=["few users", "wrong share", "mean about zero", "one user has it all"],
)
def test_what_makes_a_value_unreadable_waits_and_is_said(observed: Observed, words: str) -> None:
    verdict = judge(observed, SETTINGS, {})
    assert verdict.decision == "wait"
    assert words in verdict.reasons[0]


def test_guards_withdraw_and_never_promote() -> None:
    good, bad, stable = arm_of(1, 2000), arm_of(1, 2000, answered=3.0), arm_of(5, 8000)
    kinds = {"click": CLICK}
    assert judge(Observed(good, stable, (2000, 8000), 0.2), SETTINGS, kinds).decision != "withdraw"
    verdict = judge(Observed(bad, stable, (2000, 8000), 0.2), SETTINGS, kinds)
    assert verdict.decision == "withdraw"
    assert "click" in verdict.reasons[0]


def test_arms_that_both_versions_answered_wait() -> None:
    drawn = with_values(_values(1, 60_000), _values(2, 240_000))
    assert judge(drawn, SETTINGS, {}).decision == "promote"
    verdict = judge(replace(drawn, mixed=4000), SETTINGS, {})
    assert verdict.decision == "wait"
    assert "both versions answered 4,000 users" in verdict.reasons[0]


def test_a_label_is_worth_what_the_file_says_else_the_default_value_model() -> None:
    domain = AnswerDomain(None, {"click": 1.0, "like": 1.0}, np.zeros((0, 2), np.float32))
    weighted = ValueModels.from_bytes(b"default: {kind: weighted_sum, weights: {like: 13.5}}", "values", domain)
    assert realised_weights(SETTINGS, weighted) == {"like": 13.5}
    own = SETTINGS.model_copy(update={"realised": {"click": 1.0}})
    assert realised_weights(own, weighted) == {"click": 1.0}
    product = b"default: {kind: weighted_product, exponents: {click: 0.6}, floor: 1.0e-4}"
    with pytest.raises(ValueError, match="value model 'default' is no weighted_sum"):
        realised_weights(SETTINGS, ValueModels.from_bytes(product, "values", domain))


@pytest.mark.parametrize("exposed", [(100, 900), (160, 840), (30_000, 70_000)])
def test_evidence_against_a_share_is_a_bayes_factor(exposed: tuple[int, int]) -> None:
    canary, stable = exposed
    share, prior = 0.1, stats.beta(100, 900)

    def log_relative(p: float) -> float:
        return canary * math.log(p / share) + stable * math.log((1 - p) / (1 - share))

    peak = (100 + canary) / (1000 + canary + stable)
    top = log_relative(peak)
    spread = 10 * math.sqrt(peak * (1 - peak) / (1000 + canary + stable))
    integral, _ = integrate.quad(
        lambda p: math.exp(log_relative(p) - top) * prior.pdf(p), max(1e-6, peak - spread), peak + spread, points=[peak]
    )
    evidence = sample_ratio_evidence(exposed, (share, 1 - share))
    assert math.log(evidence) == pytest.approx(min(top + math.log(integral), 700.0), abs=1e-3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"horizon": "24h", "at_most": "12h"}, "longer than horizon"),
        ({"horizon": "24h", "at_most": "7d", "max_worse": 5}, "max_worse"),
        ({"horizon": "24h", "at_most": "7d", "alpha": 0.5}, "alpha"),
        ({"horizon": "24h", "at_most": "7d", "realised": {}}, "realised"),
        ({"horizon": "24h", "at_most": "7d", "max_wors": 0.1}, "max_worse"),
        ({"horizon": 24, "at_most": "7d"}, "horizon"),
    ],
)
def test_settings_that_break_a_rule_are_refused_by_name(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        JudgeSettings.from_mapping(given, "daily.yaml")


def test_a_range_of_a_gate_is_around_1() -> None:
    with pytest.raises(ValueError, match=r"label_rate_ratio: expected \[low, high\] around 1, got \[1.5, 2\]"):
        DataGate.from_mapping({"label_rate_ratio": [1.5, 2.0]}, "daily.yaml")
