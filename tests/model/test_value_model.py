"""Value models: the weighted sum by hand, versions that follow content, and files that are refused by name."""

from pathlib import Path

import numpy as np
import pytest

from model.value_model import DEFAULT, ValueModel, ValueModels, WeightedSum
from tests.model.feeds import everything, schema_of, write

TASKS = ["click", "like", "play_time", "depth"]  # those of `everything()`


def value_model(weights: dict[str, float]) -> ValueModel:
    return ValueModel("v", WeightedSum(kind="weighted_sum", weights=weights), TASKS)


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


def test_score_of_no_candidate_is_empty() -> None:
    assert value_model({"click": 1.0}).score(np.zeros((0, 4), np.float32)).shape == (0,)


def test_version_follows_content_alone() -> None:
    version = value_model({"click": 1.0, "like": 2.0}).version
    assert version == value_model({"like": 2.0, "click": 1}).version
    others = [{"click": 1.0}, {"click": 1.0, "like": 2.0 + 2**-51}, {"click": 2.0, "like": 1.0}, {"depth": 1.0}]
    assert len({version, *(value_model(weights).version for weights in others)}) == len(others) + 1
    assert len(version) == 8
    int(version, 16)


def test_version_is_the_same_under_another_name(tmp_path: Path) -> None:
    text = "default: {kind: weighted_sum, weights: {click: 1}}\nother: {weights: {click: 1.0}, kind: weighted_sum}"
    models = ValueModels.from_yaml(write(tmp_path / "v.yaml", text), everything())
    assert models["default"].version == models["other"].version
    assert models.names == ["default", "other"]
    assert "other" in models
    assert "another" not in models
    assert not models.is_built_in


def test_built_in_counts_each_binary_task_once() -> None:
    models = ValueModels.built_in(everything())
    assert models.is_built_in
    assert models.names == [DEFAULT]
    assert models[DEFAULT].score(np.array([[0.5, 0.25, 1e6, 1e6]], np.float32)).tolist() == [0.75]


def test_built_in_of_regression_tasks_alone_sums_them() -> None:
    schema = schema_of(
        "name: f\nfeatures: [{name: a, side: candidate, kind: number}]\n"
        "tasks: [{name: x, kind: regression, label: x}, {name: y, kind: regression, label: y}]"
    )
    assert ValueModels.built_in(schema)[DEFAULT].score(np.array([[2.0, 3.0]], np.float32)).tolist() == [5.0]


@pytest.mark.parametrize(("text", "message"), [
    ("default: {kind: weighted_sum, weights: {clock: 1}}", "default: unknown task 'clock'; did you mean 'click'"),
    ("default: {kind: weighted_sum, weights: {zzz: 1}}", "unknown task 'zzz'; valid tasks: click, like, play_time"),
    ("default: {kind: weighted_sum, weights: {click: .nan}}", "default: the weight of 'click' must be a finite"),
    ("default: {kind: weighted_sum, weights: {click: -.inf}}", "default: the weight of 'click' must be a finite"),
    ("default: {kind: weighted_sum, weights: {click: high}}", "default: weights.click: .*got 'high'"),
    ("default: {kind: weighted_sum, weights: {click: yes}}", "default: weights: got true or false"),
    ("default: {kind: weighted_sum, weights: {}}", "default: weights"),
    ("default: {kind: weighted_sum}", "default: weights: Field required"),
    ("default: {kind: weighted_some, weights: {click: 1}}", "default: kind: .*got 'weighted_some'"),
    ("default: {kind: weighted_sum, wieghts: {click: 1}}", "did you mean 'weights'"),
    ("default: 3", "default: expected a mapping"),
    ("other: {kind: weighted_sum, weights: {click: 1}}", "one named 'default'"),
    ("", "one named 'default'"),
    ("[default]", "one named 'default'"),
    ("default: {kind: weighted_sum, weights: {click: 1}}\n2: {kind: weighted_sum, weights: {click: 1}}", "got 2"),
    ("default: {kind: weighted_sum, weights: {click: 1, click: 2}}", "key 'click' is given twice"),
])  # fmt: skip
def test_faults_name_file_value_model_and_rule(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "value_models.yaml", text)
    with pytest.raises(ValueError, match=message) as raised:
        ValueModels.from_yaml(path, everything())
    assert str(raised.value).startswith(f"{path}: ")


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.yaml: cannot be read"):
        ValueModels.from_yaml(tmp_path / "absent.yaml", everything())
