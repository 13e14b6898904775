"""Formulas: Python's arithmetic on arrays, and nothing else of Python."""

import ast
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.value_models.formula import Condition, Formula

VALUES = {"a": np.array([0.25, 3.0]), "b": np.array([0.5, -2.0]), "c.d": np.array([1.5, 0.75])}


@pytest.mark.parametrize(("text", "expected"), [
    ("a", [0.25, 3.0]),
    ("2", [2.0, 2.0]),
    (" a + b * 2 ", [1.25, -1.0]),
    ("(a + b) * 2", [1.5, 2.0]),
    ("-a ** 2", [-0.0625, -9.0]),
    ("2 ** 3 ** 0", [2.0, 2.0]),
    ("a / b - 1", [-0.5, -2.5]),
    ("min(a, b) + max(a, b)", [0.75, 1.0]),
    ("abs(b) + sqrt(4 * a * a) + log(exp(b))", [1.5, 6.0]),
    ("1e-3 * a", [0.00025, 0.003]),
    ("a * c.d - -c . d", [1.875, 3.0]),
])  # fmt: skip
def test_value(text: str, expected: list[float]) -> None:
    np.testing.assert_allclose(Formula(text)(VALUES), expected, rtol=1e-15)


def test_names_in_order_of_first_use() -> None:
    assert Formula("b * log(a + 1) + b").names == ("b", "a")
    assert Formula("c.e - c.d * a / c.e").names == ("c.e", "c.d", "a")


def test_a_dot_is_part_of_a_name_and_reads_no_attribute() -> None:
    """Python's own objects of these names are out of reach: they are looked up among the outputs like any other."""
    formula = Formula("a.__class__ + a.real")
    assert formula.names == ("a.__class__", "a.real")
    with pytest.raises(KeyError, match=r"a\.__class__"):
        formula(VALUES)


def test_integers_do_not_grow_without_bound() -> None:
    """9 ** 9 ** 9 as an integer of Python has 370 million digits. As a float64 it is infinite at once."""
    assert np.isinf(Formula("a + 9 ** 9 ** 9")(VALUES)).all()


@pytest.mark.parametrize(("text", "message"), [
    ("", "not a formula"),
    ("a +", "not a formula"),
    ("a $ b", "not a formula at character 3"),
    ("a b", "not a formula"),
    ("a = 1", "not a formula"),
    ("a; b", "not a formula"),
    ("__import__('os').system('true')", r"'__import__.*' at character 1 is not allowed"),
    ("c.d.e", r"'c\.d\.e' at character 1 is not allowed"),
    ("a + c.d.__class__", r"'c\.d\.__class__' at character 5 is not allowed"),
    ("(a + b).real", r"'\(a \+ b\)\.real' at character 1 is not allowed"),
    ("1.5.real", r"'1\.5\.real' at character 1 is not allowed"),
    ("c.d()", r"'c\.d\(\)' at character 1 is not allowed"),
    ("c.d[0]", r"'c\.d\[0\]' at character 1 is not allowed"),
    ("c.exp(a)", r"'c\.exp\(a\)' at character 1 is not allowed"),
    ("c.", "not a formula"),
    ("a * c.class", r"not a formula at character \d+ \('class' is a word of Python's, which weights alone can read"),
    (".d", "not a formula"),
    ("1 + a[0]", r"'a\[0\]' at character 5 is not allowed"),
    ("'a' + 'b'", "'a'. at character 1 is not allowed"),
    ("True", "'True' at character 1 is not allowed"),
    ("1j * a", "'1j' at character 1 is not allowed"),
    ("a if b else 1", "is not allowed"),
    ("a < b", "is not allowed"),
    ("a and b", "is not allowed"),
    ("a % b", "is not allowed"),
    ("a // b", "is not allowed"),
    ("a @ b", "is not allowed"),
    ("~a", "is not allowed"),
    ("not a", "is not allowed"),
    ("lambda: a", "is not allowed"),
    ("[a for a in b]", "is not allowed"),
    ("(a := 3)", "is not allowed"),
    ("f'{a}'", "is not allowed"),
    ("(a, b)", "is not allowed"),
    ("sin(a)", r"'sin\(a\)' at character 1 is not allowed; valid: numbers, tasks"),
    ("log(a, b)", "log takes 1 value, got 2"),
    ("max(a)", "max takes 2 values, got 1"),
    ("max(*a)", "is not allowed|takes 2"),
    ("log(a, base=2)", "is not allowed"),
    ("1e999 * a", "'1e999' at character 1 is too large a number"),
    ("a * " + "9" * 400, "is too large a number"),
    ("a" + " + a" * 300, "characters, 1000 at most"),
    ("(" * 60 + "a" + ")" * 60 + "+" * 300 + "a", "nested deeper than 50|not a formula"),
    ("-" * 200 + "a", "nested deeper than 50 levels"),
    ("\u0430", "in ASCII"),
    ("a\0", "not a formula"),
])  # fmt: skip
def test_what_is_no_formula_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Formula(text)


@given(st.recursive(
    st.sampled_from(["a", "b", "c.d", "2", "0.5"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(lambda parts: f"({' '.join(parts)})"),
        inner.map(lambda part: f"-({part})"),
        st.tuples(inner, inner).map(lambda parts: f"min({parts[0]}, {parts[1]})"),
    ),
    max_leaves=8,
))  # fmt: skip
def test_any_formula_is_what_python_makes_of_it(text: str) -> None:
    for row in (0, 1):
        a, b, d = (float(values[row]) for values in VALUES.values())
        names = {"a": a, "b": b, "c": SimpleNamespace(d=d)}
        expected = eval(compile(ast.parse(text, mode="eval"), "", "eval"), {"min": min}, names)
        assert Formula(text)(VALUES)[row] == pytest.approx(float(expected), rel=1e-12, abs=1e-12)


WITH_NAN = {**VALUES, "e": np.array([np.nan, 1.0])}


@pytest.mark.parametrize(("text", "expected"), [
    ("a < b", "[a < b for a, b in rows]"),
    ("a <= 0.5 and b != 2", "[a <= 0.5 and b != 2 for a, b in rows]"),
    ("not (a > b or b == 2)", "[not (a > b or b == 2) for a, b in rows]"),
    ("0 < a < b + 1 <= 9", "[0 < a < b + 1 <= 9 for a, b in rows]"),
    ("max(a, b) >= 2 and a > 0 and b > 0 or a == 0", "[max(a, b) >= 2 and a > 0 and b > 0 or a == 0 for a, b in rows]"),
])  # fmt: skip
def test_a_condition_is_what_python_makes_of_it(text: str, expected: str) -> None:
    rows = list(zip(VALUES["a"].tolist(), VALUES["b"].tolist(), strict=True))
    assert Condition(text)(VALUES).tolist() == eval(expected, {"max": max, "rows": rows})


@pytest.mark.parametrize("sign", ["<", "<=", ">", ">=", "==", "!="])
def test_a_comparison_with_what_is_no_number_is_false(sign: str) -> None:
    assert not Condition(f"e {sign} 1")(WITH_NAN)[0]
    assert not Condition(f"1 {sign} e + a")(WITH_NAN)[0]
    assert not Condition(f"0 / (a - a) {sign} 1")(WITH_NAN).any()


@pytest.mark.parametrize(("text", "message"), [
    ("a", "'a' is a number; compare it, as in: a > 0"),
    ("a and b > 1", "'a' at character 1 is a number, not true or false"),
    ("not a", "'a' at character 5 is a number, not true or false"),
    ("a + (b > 1) > 2", "'b > 1' at character 6 is true or false, not a number"),
    ("(a > 1) == (b > 1)", "'a > 1' at character 2 is true or false, not a number"),
    ("a in b", "'a in b' at character 1 is not allowed; valid: numbers, features"),
    ("a is b", "'a is b' at character 1 is not allowed"),
    ("a > 'x'", "'x'. at character 5 is not allowed"),
    ("a > True", "'True' at character 5 is not allowed"),
    ("class > 1", "not a condition at character 1 .'class' is a word of Python's, which no condition can read"),
    ("not " * 60 + "a > 1", "the condition is nested deeper than 50 levels"),
    ("a >", "not a condition"),
])  # fmt: skip
def test_what_is_no_condition_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Condition(text)


def test_long_conditions_are_shallow_trees() -> None:
    """Evaluation by recursion ends with a thousand comparisons in a row."""
    assert Condition("a" + " > 1" * 240)(VALUES).tolist() == [False, False]
    assert Condition(" or ".join(["a > 9"] * 90 + ["a < 9"]))(VALUES).all()
