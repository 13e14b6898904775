"""Value models: the weighted sum by hand, versions that follow content, and files that are refused by name."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from model.schema import FeedSchema
from model.value_models.answer_domain import AnswerDomain
from model.value_models.value_model import (
    DEFAULT,
    MAX_VALUE_MODELS,
    Expression,
    ValueModel,
    ValueModels,
    WeightedProduct,
    WeightedSum,
)
from tests.model.feeds import everything, schema_of, write

TASKS = ["click", "like", "play_time", "depth"]  # those of `everything()`: two probabilities, two quantities
# With what comes before the task of two classes.
RATED = (
    "name: f\nfeatures: [{{name: a, side: candidate, kind: number}}]\n"
    "tasks: [{}{{name: rating, kind: multiclass, label: rating, classes: [bad, good]}}]"
)


def domain_of(schema: FeedSchema) -> AnswerDomain:
    """Probabilities to 1, quantities to a day in milliseconds, no golden answer."""
    uppers = {output: 8.64e7 if task.kind == "regression" else 1.0 for task in schema.tasks for output in task.outputs}
    return AnswerDomain(schema, uppers, np.zeros((0, len(uppers)), np.float32))


def value_model(weights: dict[str, float]) -> ValueModel:
    return ValueModel("v", WeightedSum(kind="weighted_sum", weights=weights), domain_of(everything()))


def expression(formula: str) -> ValueModel:
    return ValueModel("v", Expression(kind="expression", formula=formula), domain_of(everything()))


def test_score_is_the_weighted_sum() -> None:
    answers = np.array([[0.5, 0.1, 1000.0, 3.0], [0.25, 0.0, 0.0, 7.0]], np.float32)
    score = value_model({"like": -74.0, "click": 2.0, "play_time": 0.001}).score(answers)
    # 0.1 is not a float32: its nearest one counts.
    expected = [2 * 0.5 - 74 * float(np.float32(0.1)) + 0.001 * 1000, 2 * 0.25]
    np.testing.assert_allclose(score, expected, rtol=1e-15)
    assert score.dtype == np.float64


def test_a_large_weight_does_not_cost_the_small_tasks_their_digits() -> None:
    """1e8 + 1e-3 has no float32: the second candidate's extra like would be lost."""
    answers = np.array([[1.0, 0.001, 0, 0], [1.0, 0.002, 0, 0]], np.float32)
    first, second = value_model({"click": 1e8, "like": 1.0}).score(answers)
    assert second - first == pytest.approx(0.001, rel=1e-4)


def test_a_file_of_too_many_value_models_is_refused_before_any_is_tried() -> None:
    names = [DEFAULT, *(f"v{number}" for number in range(1, MAX_VALUE_MODELS))]
    most = "\n".join(f"{name}: {{kind: weighted_sum, weights: {{click: 1.0}}}}" for name in names)
    assert ValueModels.from_bytes(most.encode(), "v.yaml", domain_of(everything())).names == names
    over = most.replace("click", "no_task") + '\none_more: {kind: expression, formula: "1 / click"}'
    with pytest.raises(ValueError, match=r"^v\.yaml: at most 100 value models, got 101; remove"):
        ValueModels.from_bytes(over.encode(), "v.yaml", domain_of(everything()))


def test_score_of_no_candidate_is_empty() -> None:
    assert value_model({"click": 1.0}).score(np.zeros((0, 4), np.float32)).shape == (0,)


ANSWERS = np.array([[0.5, 0.1, 1000.0, 3.0], [0.25, 1e-9, 20.0, 7.0], [0.75, 0.9, 0.0, 0.0]], np.float32)
REFERENCE = [0.3, 0.02, 400.0, 2.0]


def product_model(exponents: dict[str, float], floor: float = 1e-4) -> ValueModel:
    definition = WeightedProduct(kind="weighted_product", exponents=exponents, floor=floor)
    return ValueModel("v", definition, domain_of(everything()))


def test_weighted_product_is_the_product_of_floored_powers() -> None:
    model = product_model({"like": -0.5, "click": 1.2}, floor=0.01)
    rows = ANSWERS.astype(float).tolist()
    expected = [math.pow(max(click, 0.01), 1.2) * math.pow(max(like, 0.01), -0.5) for click, like, _, _ in rows]
    np.testing.assert_allclose(model.score(ANSWERS), expected, rtol=1e-13)
    contributions = model.contributions(ANSWERS, REFERENCE)
    assert list(contributions) == ["like", "click"]
    np.testing.assert_allclose(contributions["like"], [-0.5 * math.log(max(row[1], 0.01)) for row in rows], rtol=1e-13)
    np.testing.assert_allclose(sum(contributions.values()), np.log(expected), rtol=1e-13)
    assert model.score(ANSWERS[:0]).shape == (0,)


def test_floor_is_part_of_the_version() -> None:
    versions = {product_model({"click": 1.0}, floor).version for floor in (1e-4, 1e-3)}
    assert len(versions | {value_model({"click": 1.0}).version}) == 3


def test_contributions_of_a_weighted_sum_are_its_terms() -> None:
    contributions = value_model({"like": -74.0, "click": 2.0}).contributions(ANSWERS, REFERENCE)
    np.testing.assert_array_equal(contributions["like"], -74.0 * ANSWERS[:, 1].astype(float))
    np.testing.assert_array_equal(contributions["click"], 2.0 * ANSWERS[:, 0].astype(float))
    assert list(contributions) == ["like", "click"]


FORMULA = "click * (1 + 4 * like) - 20 * max(like, 0.05) + log(1 + depth) * sqrt(click) - -(2 ** -depth) / 3"


def by_hand(click: float, like: float, depth: float) -> float:
    """FORMULA, in Python's own arithmetic."""
    terms = click * (1 + 4 * like) - 20 * max(like, 0.05) + math.log(1 + depth) * math.sqrt(click)
    return terms + 2**-depth / 3


def test_expression_is_its_formula() -> None:
    score = expression(FORMULA).score(ANSWERS)
    rows = ANSWERS.astype(float).tolist()
    np.testing.assert_allclose(score, [by_hand(click, like, depth) for click, like, _, depth in rows], rtol=1e-13)


def test_contributions_of_an_expression_are_shapley_values() -> None:
    """Shapley's own definition: the mean gain of a task over every order in which tasks may take the candidate's
    answer in place of the reference's."""
    contributions = expression(FORMULA).contributions(ANSWERS, REFERENCE)
    names, reference = ["click", "like", "depth"], dict(zip(TASKS, REFERENCE, strict=True))
    for row, answers in enumerate(ANSWERS.astype(float).tolist()):
        candidate = dict(zip(TASKS, answers, strict=True))
        gains = dict.fromkeys(names, 0.0)
        orders = list(itertools.permutations(names))
        for order in orders:
            now = {name: reference[name] for name in names}
            for name in order:
                before = by_hand(**now)
                now[name] = candidate[name]
                gains[name] += (by_hand(**now) - before) / len(orders)
        assert {name: values[row] for name, values in contributions.items()} == pytest.approx(gains, rel=1e-12)


def test_contributions_of_many_candidates_are_those_of_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = expression("click * like + depth")
    random = np.random.default_rng(0)
    answers = random.random((50, 4)).astype(np.float32)
    whole = model.contributions(answers, REFERENCE)
    monkeypatch.setattr("model.value_models.value_model._EVALUATIONS_AT_ONCE", 8 * 7)
    parts = model.contributions(answers, REFERENCE)
    for task, values in whole.items():
        np.testing.assert_allclose(values, parts[task], rtol=1e-12, atol=1e-15)  # sums in another order
        alone = [model.contributions(answers[row : row + 1], REFERENCE)[task][0] for row in range(50)]
        np.testing.assert_allclose(values, alone, rtol=1e-12, atol=1e-15)


def with_classes() -> AnswerDomain:
    """A probability, and a task of three classes."""
    uppers = dict.fromkeys(["click", "rating.bad", "rating.fair", "rating.good"], 1.0)
    return AnswerDomain(None, uppers, np.zeros((0, 4), np.float32))


@pytest.mark.parametrize(("text", "score", "explained"), [
    ("{kind: weighted_sum, weights: {rating.good: 2, click: 1, rating.bad: -4}}", 0.75, 0.75),
    ("{kind: weighted_product, exponents: {rating.good: 2, click: 0.5}}", 0.125, math.log(0.125)),
    ("{kind: expression, formula: click * rating.good - rating.bad ** 2}", 0.109375, 0.109375 - 0.1875),
])  # fmt: skip
def test_a_class_is_read_by_its_dotted_name(text: str, score: float, explained: float) -> None:
    """Contributions sum to the score, to its logarithm, or to its step from that of the reference answers."""
    model = ValueModels.from_bytes(f"default: {text}".encode(), "v.yaml", with_classes())[DEFAULT]
    answers_1O = np.array([[0.25, 0.125, 0.375, 0.5]], np.float32)
    np.testing.assert_allclose(model.score(answers_1O), [score], rtol=1e-12)
    contributions = model.contributions(answers_1O, [0.5, 0.25, 0.25, 0.5])
    assert set(contributions) == set(model.definition.outputs)
    np.testing.assert_allclose(sum(contributions.values()), [explained], rtol=1e-12)


@pytest.mark.parametrize(("text", "message"), [
    ("{kind: weighted_sum, weights: {rating: 1}}", "'rating' has an answer per class, not one; name a class: rating.b"),
    ("{kind: weighted_product, exponents: {rating: 1}}", "name a class: rating.bad, rating.fair, rating.good"),
    ("{kind: expression, formula: click * rating}", "name a class: rating.bad, rating.fair, rating.good"),
    ("{kind: expression, formula: rating.god}", "unknown task 'rating.god'; did you mean 'rating.good'"),
    ("{kind: expression, formula: click.__class__}", "unknown task 'click.__class__'; "),
    ("{kind: expression, formula: log(rating.fair)}", r"'log\(rating.fair\)' gives -inf for rating.fair = 0; "),
])  # fmt: skip
def test_a_name_that_is_no_output_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ValueModels.from_bytes(f"default: {text}".encode(), "v.yaml", with_classes())


def test_version_follows_content_alone() -> None:
    version = value_model({"click": 1.0, "like": 2.0}).version
    assert version == value_model({"like": 2.0, "click": 1}).version
    others = [{"click": 1.0}, {"click": 1.0, "like": 2.0 + 2**-51}, {"click": 2.0, "like": 1.0}, {"depth": 1.0}]
    assert len({version, *(value_model(weights).version for weights in others)}) == len(others) + 1
    assert len(version) == 8
    int(version, 16)


def test_version_is_the_same_under_another_name(tmp_path: Path) -> None:
    text = "default: {kind: weighted_sum, weights: {click: 1}}\nother: {weights: {click: 1.0}, kind: weighted_sum}"
    models = ValueModels.from_yaml(write(tmp_path / "v.yaml", text), domain_of(everything()))
    assert models["default"].version == models["other"].version
    assert models.names == ["default", "other"]
    assert "other" in models
    assert "another" not in models
    assert not models.is_built_in


def test_built_in_counts_each_binary_task_once() -> None:
    models = ValueModels.built_in(domain_of(everything()))
    assert models.is_built_in
    assert models.names == [DEFAULT]
    assert models[DEFAULT].score(np.array([[0.5, 0.25, 1e6, 1e6]], np.float32)).tolist() == [0.75]


def test_built_in_of_regression_tasks_alone_sums_them() -> None:
    schema = schema_of(
        "name: f\nfeatures: [{name: a, side: candidate, kind: number}]\n"
        "tasks: [{name: x, kind: regression, label: x}, {name: y, kind: regression, label: y}]"
    )
    assert ValueModels.built_in(domain_of(schema))[DEFAULT].score(np.array([[2.0, 3.0]], np.float32)).tolist() == [5.0]


@pytest.mark.parametrize(("others", "expected"), [
    ("{name: click, kind: binary, label: click}, {name: watch, kind: regression, label: watch}, ", 0.25),
    ("{name: watch, kind: regression, label: watch}, ", 3.0),
])  # fmt: skip
def test_built_in_leaves_classes_out(others: str, expected: float) -> None:
    models = ValueModels.built_in(domain_of(schema_of(RATED.format(others))))
    answers = [0.25] * ("click" in others) + [3.0, 0.125, 0.875]
    assert models[DEFAULT].score(np.array([answers], np.float32)).tolist() == [expected]


def test_built_in_of_classes_alone_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"which class is better; write a value_models\.yaml with .* rating\.bad, rating"
    ):
        ValueModels.built_in(domain_of(schema_of(RATED.format(""))))


@pytest.mark.parametrize(("text", "message"), [
    ("default: {kind: weighted_sum, weights: {clock: 1}}", "default: unknown task 'clock'; did you mean 'click'"),
    ("default: {kind: weighted_sum, weights: {zzz: 1}}", "unknown task 'zzz'; valid tasks: click, like, play_time"),
    ("default: {kind: weighted_sum, weights: {click: .nan}}", "default: weights.click: Input should be a finite"),
    ("default: {kind: weighted_sum, weights: {click: -.inf}}", "default: weights.click: Input should be a finite"),
    ("default: {kind: weighted_sum, weights: {click: high}}", "default: weights.click: .*got 'high'"),
    ("default: {kind: weighted_sum, weights: {click: yes}}", "default: weights: got true or false"),
    ("default: {kind: weighted_sum, weights: {}}", "default: weights"),
    ("default: {kind: weighted_sum}", "default: weights: Field required"),
    ("default: {kind: weighted_some, weights: {click: 1}}", "default: unknown kind 'weighted_some'; did you mean"),
    ("default: {kind: weighted_sum, wieghts: {click: 1}}", "did you mean 'weights'"),
    ("default: 3", "default: expected a mapping"),
    ("default: {weights: {click: 1}}", "default: key 'kind' is missing; it names the value model: weighted_sum, weig"),
    ("default: {kind: weighted_product, exponents: {clock: 1}}", "unknown task 'clock'; did you mean 'click'"),
    ("default: {kind: weighted_product, exponents: {click: 1}, floor: 0}", "floor: .*greater than 0"),
    ("default: {kind: weighted_product, exponents: {click: 1}, floor: .inf}", "floor: .*finite"),
    ("default: {kind: weighted_product, weights: {click: 1}}", "unknown key 'weights'"),
    ("default: {kind: expression, formula: clock * 2}", "unknown task 'clock'; did you mean 'click'"),
    ("default: {kind: expression, formula: click *}", "default: formula: not a formula"),
    ("default: {kind: expression, formula: 3}", "default: formula: "),
    ("default: {kind: expression, formula: '1 + 2'}", "reads 1 to 12 tasks or classes, this one 0"),
    ("default: {kind: expression, formula: click / like}", "'click / like' gives nan for click = 0, like = 0; keep it"),
    ("default: {kind: expression, formula: log(like)}", "'log.like.' gives -inf for like = 0; keep it finite"),
    ("default: {kind: expression, formula: exp(play_time)}", "'exp.play_time.' gives inf for play_time = 8.64e"),
    ("default: {kind: expression, formula: (click - like) ** 0.5}", "gives nan for click = 0, like = 1"),
    ("default: {kind: expression, formula: 2 - (abs(click - 0.5) - 0.25) ** 0.5}", r": '\(abs.* gives nan for cl"),
    ("default: {kind: expression, formula: (click - click ** 2) ** 0.5}", r"shown to be finite .*\(click 0 to 1\)"),
    ("default: {kind: weighted_sum, weights: {play_time: 1e308}}", "'1e.308 . play_time' gives inf for play_time"),
    ("default: {kind: weighted_sum, weights: {like: 1, click: -1e39}}", "gives -1e.39, beyond 3e.38, for .*; use s"),
    ("default: {kind: weighted_product, exponents: {click: -100000}}", "'exp.-100000 . log.* gives inf for click = 0;"),
    ("default: {kind: weighted_product, exponents: {click: 1e9}}", "exponents.click: .*less than or equal to 1000000"),
    ("other: {kind: weighted_sum, weights: {click: 1}}", "one named 'default'"),
    ("", "one named 'default'"),
    ("[default]", "one named 'default'"),
    ("default: {kind: weighted_sum, weights: {click: 1}}\n2: {kind: weighted_sum, weights: {click: 1}}", "got 2"),
    ("default: {kind: weighted_sum, weights: {click: 1, click: 2}}", "key 'click' is given twice"),
])  # fmt: skip
def test_faults_name_file_value_model_and_rule(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "value_models.yaml", text)
    with pytest.raises(ValueError, match=message) as raised:
        ValueModels.from_yaml(path, domain_of(everything()))
    assert str(raised.value).startswith(f"{path}: ")


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.yaml: cannot be read"):
        ValueModels.from_yaml(tmp_path / "absent.yaml", domain_of(everything()))
