"""Acceptance of value models: what is accepted is finite everywhere, and usual formulas are accepted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.value_models.answer_domain import AnswerDomain
from model.value_models.finite_scores import refuse_not_finite
from model.value_models.formula import Formula
from model.value_models.value_model import (
    Definition,
    Expression,
    ValueModel,
    WeightedProduct,
    WeightedSum,
)
from tests.model.feeds import everything

UPPERS = {"click": 1.0, "like": 1.0, "play_time": 3.6e6, "depth": 40.0}
DOMAIN = AnswerDomain(everything(), UPPERS, np.zeros((0, 4), np.float32))


def bound(definition: Definition) -> ValueModel:
    return ValueModel("v", definition, DOMAIN)


@pytest.mark.parametrize("formula", [
    "log(1 + play_time)",
    "click / (click + 1)",
    "play_time ** 0.5",
    "(click - like) ** 2",
    "sqrt(log(1 + play_time)) * like",
    "max(click, 1e-6) ** -2",
    "like ** click",
    "click / (click + like + 1e-9)",
    "1 / (1 + exp(5 - play_time))",                # exp overflows nowhere that counts
    "1 / (1 + exp(play_time))",                    # here it does, and the quotient is 0
    "max(log(click), -5)",
    "sqrt(click * click - click + 0.26)",          # shown by halves alone: bounds of the whole are below 0
    "sqrt((click - like) * (click - like) + 0.01)",
    "log(1.1 + click - like)",
])  # fmt: skip
def test_usual_formulas_are_accepted(formula: str) -> None:
    bound(Expression(kind="expression", formula=formula))


def test_a_sub_expression_is_named_where_it_alone_is_at_fault() -> None:
    with pytest.raises(ValueError, match=r"^'log\(like \* 2\)' gives -inf for click = 0, like = 0; use another$"):
        refuse_not_finite(Formula("click * 3 - 2 * log(like * 2) / 5").whole, {"click": 1, "like": 1}, "use another")


def test_a_wide_sum_is_shown_without_trying_every_corner() -> None:
    names = [f"t{number}" for number in range(60)]
    terms = WeightedSum(kind="weighted_sum", weights=dict.fromkeys(names, -2.5)).whole()
    refuse_not_finite(terms, dict.fromkeys(names, 1e6), "")
    with pytest.raises(ValueError, match="gives -inf for"):
        refuse_not_finite(terms, dict.fromkeys(names, 1e308), "")


TASKS = st.sampled_from(list(UPPERS))
WEIGHTS = st.one_of(st.floats(-1e3, 1e3), st.sampled_from([1e30, -1e38, 1e308, 2.0, 0.0]))
FORMULAS = st.recursive(
    st.one_of(TASKS, st.sampled_from(["0.25", "0.5", "1", "2", "3", "1e-6", "40", "1e300"])),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "**"]), inner).map(lambda parts: f"({' '.join(parts)})"),
        st.tuples(st.sampled_from(["abs", "exp", "log", "sqrt", "-"]), inner).map("{0[0]}({0[1]})".format),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map("{0[0]}({0[1]}, {0[2]})".format),
    ),
    max_leaves=7,
)  # fmt: skip
DEFINITIONS = st.one_of(
    FORMULAS.filter(lambda text: any(task in text for task in UPPERS)).map(
        lambda text: Expression(kind="expression", formula=text)
    ),
    st.dictionaries(TASKS, WEIGHTS, min_size=1).map(lambda weights: WeightedSum(kind="weighted_sum", weights=weights)),
    st.builds(
        lambda exponents, floor: WeightedProduct(kind="weighted_product", exponents=exponents, floor=floor),
        st.dictionaries(TASKS, st.floats(-200, 200), min_size=1),
        st.sampled_from([1e-300, 1e-4, 0.5, 1e5]),
    ),
)


@given(DEFINITIONS, st.integers(0, 2**32 - 1))
def test_what_is_accepted_is_finite_everywhere(definition: Definition, seed: int) -> None:
    try:
        model = bound(definition)
    except ValueError:
        return
    random = np.random.default_rng(seed)
    # Uniform, near either end by many orders of magnitude, and the ends themselves.
    uniform_PT = random.random((300, 4))
    near_PT = 10.0 ** -random.uniform(0, 45, (300, 4))
    place_PT = np.concatenate([uniform_PT, near_PT, 1 - near_PT, random.integers(0, 2, (64, 4))])
    for column_P in place_PT.T:  # so that a small answer of one task meets a large one of another
        random.shuffle(column_P)
    answers_PT = np.minimum(place_PT * list(UPPERS.values()), list(UPPERS.values())).astype(np.float32)
    with np.errstate(all="ignore"):
        score_P = model.score(answers_PT)
    assert np.isfinite(score_P.astype(np.float32)).all(), definition
    assert np.isfinite(list(model.contributions(answers_PT[:50], [0.3, 0.1, 2e3, 7.0]).values())).all()
