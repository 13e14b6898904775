"""Statistics of comparisons against scipy, numbers worked out by hand, and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from training.compare.statistics import crossed, holm, minimum_detectable, paired_p, power, seeds_needed, spread

P_VALUES = st.dictionaries(st.text(min_size=1, max_size=3), st.floats(0, 1), min_size=1, max_size=8)


def test_interval_of_a_mean_worked_out_by_hand() -> None:
    # 1, 2, 3: mean 2, sd 1, t(.975, 2) = 4.302653 from any table.
    found = spread([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)
    assert (found.n, found.mean, found.sd) == (3, 2.0, 1.0)
    # The tabled t has seven digits.
    assert found.low == pytest.approx(2 - half, abs=1e-6)
    assert found.high == pytest.approx(2 + half, abs=1e-6)


def test_one_seed_has_a_mean_and_nothing_else() -> None:
    found = spread([0.7])
    assert (found.mean, found.sd, found.low, found.high) == (0.7, None, None, None)
    assert paired_p([0.7]) is None
    with pytest.raises(ValueError, match="at least one seed"):
        spread([])


def test_paired_test_is_scipys() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(0.1, 1, 9), rng.normal(0, 1, 9)
    # Both are float64 evaluations of one formula.
    assert paired_p((one - other).tolist()) == pytest.approx(stats.ttest_rel(one, other).pvalue, rel=1e-12)
    assert paired_p([0.25, 0.25, 0.25]) is None, "without spread there is no test"


def test_holm_worked_out_by_hand() -> None:
    # Holm (1979): sorted .01, .02, .03, .04 times 4, 3, 2, 1, and never below the one before.
    found = holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02})
    expected = {"d": 0.06, "a": 0.04, "c": 0.06, "b": 0.06}
    assert list(found) == list(expected), "the order given is kept"
    assert found == pytest.approx(expected)
    assert holm({"only": 0.03}) == {"only": 0.03}
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}


@given(P_VALUES, st.floats(0.001, 0.999))
def test_holm_rejects_as_the_sequential_procedure_does(p_values: dict[str, float], alpha: float) -> None:
    """The definition, another way round: walk up the sorted p, stop at the first above alpha / (how many are left)."""
    rejected = set()
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        if p_values[name] * (len(p_values) - rank) > alpha:
            break
        rejected.add(name)
    assert {name for name, adjusted in holm(p_values).items() if adjusted <= alpha} == rejected


def test_power_agrees_with_simulation() -> None:
    rng = np.random.default_rng(1)
    sampled = rng.normal(0.8, 1.0, (40_000, 8))
    share = float((stats.ttest_1samp(sampled, 0.0, axis=1).pvalue < 0.05).mean())
    # The standard error of a share near one half over 40,000 samples is .0025. Four of them.
    assert power(0.8, 1.0, 8, 0.05) == pytest.approx(share, abs=0.01)


def test_power_without_a_difference_is_the_level_and_with_a_huge_one_is_certain() -> None:
    assert power(0.0, 1.0, 6, 0.05) == pytest.approx(0.05, rel=1e-9)
    assert power(1e6, 1.0, 3, 0.05) == 1.0


@pytest.mark.parametrize("n", [3, 5, 10, 30])
@pytest.mark.parametrize("effect", [0.01, 0.4, 1.0])
def test_power_is_the_tail_of_the_noncentral_t(n: int, effect: float) -> None:
    critical, shift = stats.t.ppf(0.975, n - 1), effect * math.sqrt(n)
    expected = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
    # scipy promises about nine digits of the noncentral t.
    assert power(effect, 1.0, n, 0.05) == pytest.approx(expected, abs=1e-8)


def test_published_sample_size() -> None:
    """A paired t-test at .05 with power .8 for an effect of half a standard deviation needs 34 pairs (Cohen, 1988)."""
    assert seeds_needed(0.5, 1.0, 0.05, 0.8) == 34


@given(st.floats(0.05, 5.0), st.floats(0.2, 2.0), st.floats(0.3, 0.95))
def test_seeds_needed_are_just_enough(difference: float, sd: float, wanted: float) -> None:
    needed = seeds_needed(difference, sd, 0.05, wanted)
    if needed is None:
        return
    assert power(difference, sd, needed, 0.05) >= wanted
    assert needed == 2 or power(difference, sd, needed - 1, 0.05) < wanted


def test_seeds_needed_at_the_edges() -> None:
    assert seeds_needed(0.0, 1.0, 0.05, 0.8) is None, "nothing is there to be found"
    assert seeds_needed(1.0, 0.0, 0.05, 0.8) == 2, "without spread two seeds tell"
    assert seeds_needed(1e-4, 1.0, 0.05, 0.8) is None, "more seeds than anybody trains"


@pytest.mark.parametrize("n", [2, 5, 10, 40])
def test_minimum_detectable_difference_has_the_power_asked_for(n: int) -> None:
    found = minimum_detectable(0.002, n, 0.005, 0.8)
    assert found is not None
    # brentq's default tolerance in the difference, far below the slope of the power.
    assert power(found, 0.002, n, 0.005) == pytest.approx(0.8, abs=1e-6)


def test_minimum_detectable_difference_needs_a_spread() -> None:
    assert minimum_detectable(0.002, 1, 0.05, 0.8) is None
    assert minimum_detectable(0.0, 10, 0.05, 0.8) is None


def crossed_effects(rng: np.random.Generator, seeds: int, users: int, parts: tuple[float, float, float]) -> np.ndarray:
    """Differences [seeds, users] with a true mean of 0. Their mean has these standard errors of seeds, users and of one
    seed on one user."""
    of_seeds, of_users, of_both = parts
    values: np.ndarray = of_seeds * math.sqrt(seeds) * rng.normal(size=(seeds, 1))
    values = values + of_users * math.sqrt(users) * rng.normal(size=(1, users))
    return values + of_both * math.sqrt(seeds * users) * rng.normal(size=(seeds, users))


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("parts", [(1, 0, 0), (0, 0, 1), (1, 1, 0.5)])
def test_interval_over_seeds_and_users_covers(seeds: int, parts: tuple[float, float, float]) -> None:
    """The true difference lies in 93 to 97 % of the intervals: 95 % give or take three standard errors of 1,000."""
    rng = np.random.default_rng(seeds)
    users, trials = 60, 1000
    covered = 0
    for _ in range(trials):
        values = crossed_effects(rng, seeds, users, parts)
        draws = rng.multinomial(users, np.full(users, 1 / users), size=100) / users
        found = crossed(values.mean(axis=1).tolist(), draws @ values.T)
        assert found is not None
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
        covered += found.low <= 0 <= found.high
    assert 0.93 <= covered / trials <= 0.97


def test_without_users_the_interval_is_that_of_seeds() -> None:
    differences = [0.1, 0.3, 0.2, 0.5]
    found, over_seeds = crossed(differences, np.tile(differences, (100, 1))), spread(differences)
    assert found is not None
    # One formula, summed in another order.
    assert (found.low, found.high) == pytest.approx((over_seeds.low, over_seeds.high))
    assert found.p == pytest.approx(paired_p(differences))
    assert found.users_sd == pytest.approx(0, abs=1e-12)


def test_an_interval_needs_seeds_spread_and_draws_that_are_defined() -> None:
    draws = np.random.default_rng(0).normal(size=(100, 2))
    assert crossed([0.1], draws[:, :1]) is None
    assert crossed([0.1, 0.1], np.full((100, 2), 0.1)) is None
    draws[:5] = np.nan
    assert crossed([0.1, 0.2], draws) is not None
    draws[5, 0] = np.nan
    assert crossed([0.1, 0.2], draws) is None


def test_power_with_users_is_that_of_repeated_comparisons() -> None:
    rng = np.random.default_rng(0)
    seeds, users, parts, difference = 5, 60, (0.7, 0.7, 0.0), 2.5
    found = 0
    for _ in range(1000):
        values = crossed_effects(rng, seeds, users, parts) + difference
        draws = rng.multinomial(users, np.full(users, 1 / users), size=100) / users
        result = crossed(values.mean(axis=1).tolist(), draws @ values.T)
        found += result is not None and result.p < 0.05
    expected = power(difference, parts[0] * math.sqrt(seeds), seeds, 0.05, parts[1])
    # A standard error of 1,000 trials is .015.
    assert found / 1000 == pytest.approx(expected, abs=0.05)


def test_no_number_of_seeds_makes_up_for_too_few_users() -> None:
    # Twice its standard error over users alone is found with a chance of about a half, whatever the seeds.
    assert seeds_needed(0.02, 0.01, 0.05, 0.8, users_sd=0.01) is None
    few = seeds_needed(0.02, 0.01, 0.05, 0.8, users_sd=0.005)
    assert few is not None
    assert power(0.02, 0.01, few, 0.05, 0.005) >= 0.8 > power(0.02, 0.01, few - 1, 0.05, 0.005)
