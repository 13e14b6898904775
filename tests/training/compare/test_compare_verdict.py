"""Verdicts from seeds whose differences are known."""

from typing import Any

import numpy as np
import pytest

from training.compare.experiment import Verdict
from training.compare.resampling import MEAN
from training.compare.statistics import crossed, minimum_detectable, paired_p, seeds_needed, spread
from training.compare.verdict import choice, verdicts

Json = dict[str, Any]


def table(differences: list[float], verdict: Verdict, users_sd: float | None = 0.0) -> dict[str, Json]:
    """The test tables of a baseline of .9 everywhere and a network that differs by so much, seed by seed.

    Users move all seeds alike, with this standard deviation. None is a split without an interval over users."""
    found = spread(differences)
    wanted = verdict.difference or abs(found.mean)
    draws_R = np.linspace(-1, 1, 201) * (users_sd or 0.0) * np.sqrt(3)
    both = None if users_sd is None else crossed(differences, draws_R[:, None] + np.array(differences))
    sd = users_sd or 0.0
    against: Json = {
        "seeds": found.n,
        "difference": found.mean,
        "sd": found.sd,
        "percent": 100 * found.mean / 0.9,
        "p_holm": paired_p(differences),
        "users_sd": sd,
        "both_low": None if both is None else both.low,
        "both_high": None if both is None else both.high,
        "both_p_holm": None if both is None else both.p,
        "minimum_detectable": minimum_detectable(found.sd, found.n, 0.05, 0.8, sd) if found.sd else None,
        "difference_wanted": wanted,
        "seeds_needed": None if found.sd is None else seeds_needed(wanted, found.sd, 0.05, 0.8, sd),
    }
    entries = {"base": {"mean": 0.9}, "new": {"mean": 0.9 + found.mean, "against_baseline": against}}
    return {verdict.metric: {"click": entries, MEAN: entries}}


def verdict_on(differences: list[float], users_sd: float | None = 0.0, **keys: Any) -> tuple[str, str]:
    verdict = Verdict(**keys)
    found = verdicts(verdict, ["click"], "base", table(differences, verdict, users_sd))
    assert list(found) == ["new"], "the baseline has no verdict"
    return found["new"]["verdict"], found["new"]["text"]


CLEAR = [0.010, 0.011, 0.012, 0.009, 0.010, 0.011]


@pytest.mark.parametrize(
    ("metric", "sign", "expected"),
    [("auc", 1, "better"), ("auc", -1, "worse"), ("normalized_entropy", -1, "better"), ("mse", 1, "worse")],
)
def test_direction_is_the_metrics(metric: str, sign: int, expected: str) -> None:
    word, text = verdict_on([sign * difference for difference in CLEAR], metric=metric)
    assert word == expected
    # 0.0105 of 0.9 is 1.167 %.
    assert f"{sign * 0.0105:+.5f} against base ({sign * 1.16667:+.3f} %)" in text


def test_too_few_seeds_are_no_verdict_however_clear() -> None:
    word, text = verdict_on(CLEAR[:4])
    assert word == "refused"
    assert "4 seeds; a verdict needs 5 or more" in text
    # Two would do by their spread alone, and would get no verdict either.
    assert "about 5 seeds are needed (from the spread of 4)" in text
    assert verdict_on(CLEAR[:4], min_seeds=4)[0] == "better"


def test_one_seed_tells_nothing_of_how_many_are_needed() -> None:
    word, text = verdict_on([0.01])
    assert word == "refused"
    assert "how many would show a difference is not known from one seed" in text


def test_noise_is_no_difference_and_says_what_could_have_been_found() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 6)
    word, text = verdict_on((noise - noise.mean() + 1e-4).tolist(), difference=0.005)
    assert word == "no difference shown"
    assert "6 seeds on these users find a difference of" in text
    assert "to find the difference that matters, 0.00500, with power 0.8" in text


def test_the_word_stands_only_where_one_interval_over_seeds_and_users_excludes_0() -> None:
    assert verdict_on(CLEAR, users_sd=0.003)[0] == "better"
    word, text = verdict_on(CLEAR, users_sd=0.006)
    assert word == "no difference shown"
    assert "another training would show it" in text
    assert "other users may not" in text
    assert "more users are needed, not more seeds" in text


def test_seeds_alone_give_no_word() -> None:
    word, text = verdict_on(CLEAR, users_sd=None)
    assert word == "no difference shown"
    assert "no interval over users" in text


def test_equal_networks_have_no_test() -> None:
    assert verdict_on([0.0] * 6)[0] == "no difference shown"


def test_no_verdict_where_the_metric_is_undefined() -> None:
    assert verdicts(Verdict(), ["click"], "base", {}) == {}


def test_validation_chooses_the_best_mean_in_the_metrics_direction() -> None:
    entries = {"a": {"mean": 0.7}, "b": {"mean": 0.8}, "c": {"mean": 0.6}}
    assert choice(Verdict(metric="auc"), {"click": {}, MEAN: entries}) == "b"
    assert choice(Verdict(metric="normalized_entropy"), {MEAN: entries}) == "c"
    assert choice(Verdict(metric="auc"), {}) is None
