"""Calibration maps as they are served: by hand, strictly increasing, and refused where they would not be."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.calibration import AnswerMap, Calibration, Isotonic, LabelMean, Platt, calibrated
from tests.model.feeds import everything

ISOTONIC = Isotonic(kind="isotonic", inputs=(0.1, 0.4), outputs=(0.05, 0.6))
LABEL_MEAN = LabelMean(kind="label_mean", inputs=(10.0, 40.0), outputs=(30.0, 45.0), upper=100.0)
PLATT = Platt(kind="platt", slope=1.5, intercept=-0.3)


def test_isotonic_is_straight_between_its_points_and_the_corners() -> None:
    given_N = np.array([0.0, 0.05, 0.1, 0.25, 0.4, 0.7, 1.0])
    expected = [0.0, 0.025, 0.05, (0.05 + 0.6) / 2, 0.6, 0.6 + 0.4 * 0.5, 1.0]
    np.testing.assert_allclose(ISOTONIC(given_N), expected, rtol=1e-15)


def test_a_label_mean_is_straight_between_its_points_in_proportion_beyond_and_bounded() -> None:
    given_N = np.array([0.0, 5.0, 10.0, 20.0, 40.0, 80.0, 88.0, 1e30])
    expected = [0.0, 15.0, 30.0, 35.0, 45.0, 90.0, 99.0, 100.0]
    np.testing.assert_allclose(LABEL_MEAN(given_N), expected, rtol=1e-15)


def test_platt_is_a_line_on_the_logit() -> None:
    expected = [1 / (1 + math.exp(-(1.5 * math.log(p / (1 - p)) - 0.3))) for p in (0.01, 0.5, 0.99)]
    np.testing.assert_allclose(PLATT(np.array([0.01, 0.5, 0.99])), expected, rtol=1e-14)
    assert PLATT(np.array([0.0, 1.0])).tolist() == [0.0, 1.0]


@given(
    st.lists(st.floats(1e-7, 1 - 1e-7), min_size=2, max_size=30, unique=True),
    st.sampled_from([ISOTONIC, PLATT, Isotonic(kind="isotonic", inputs=(0.5,), outputs=(0.001,))]),
)
def test_order_is_kept(values: list[float], mapping: Isotonic | Platt) -> None:
    # Neighbours closer than this may become one float64: slopes here are at least 0.002.
    values_N = np.unique(np.round(np.sort(values), 9))
    assert (np.diff(mapping(values_N)) > 0).all()


def test_only_the_named_tasks_change_and_the_given_array_does_not() -> None:
    answers = np.array([[0.1, 0.25, 9.0, 2.0], [0.4, 0.5, 1.0, 0.0]], np.float32)
    before = answers.copy()
    mappings = Calibration(tasks={"like": PLATT, "click": ISOTONIC}).bound(everything())
    changed = calibrated(answers, mappings)
    np.testing.assert_array_equal(answers, before)
    np.testing.assert_array_equal(changed[:, 2:], before[:, 2:])
    np.testing.assert_allclose(changed[:, 0], [0.05, 0.6], rtol=1e-6)  # 0.1 and 0.4 are not float32
    np.testing.assert_allclose(changed[:, 1], PLATT(np.array([0.25, 0.5])), rtol=1e-6)
    assert changed.dtype == np.float32


def test_not_a_number_is_not_made_one() -> None:
    answers = np.array([[np.nan]], np.float32)
    for mapping in (PLATT, ISOTONIC, LABEL_MEAN):
        assert np.isnan(calibrated(answers, [(slice(0, 1), mapping)])).all()


@pytest.mark.parametrize(("content", "message"), [
    ({"kind": "isotonic", "inputs": [0.4, 0.1], "outputs": [0.1, 0.2]}, "inputs: must be strictly increasing"),
    ({"kind": "isotonic", "inputs": [0.1, 0.4], "outputs": [0.2, 0.2]}, "outputs: must be strictly increasing"),
    ({"kind": "isotonic", "inputs": [0.1], "outputs": [0.1, 0.2]}, "1 inputs and 2 outputs"),
    ({"kind": "isotonic", "inputs": [], "outputs": []}, "0 inputs and 0 outputs"),
    ({"kind": "isotonic", "inputs": [0.0], "outputs": [0.5]}, "inputs.0: "),
    ({"kind": "isotonic", "inputs": [0.5], "outputs": [float("nan")]}, "outputs.0: "),
    ({"kind": "platt", "slope": -1.0, "intercept": 0.0}, "slope: "),
    ({"kind": "platt", "slope": 1.0, "intercept": float("inf")}, "intercept: "),
    ({"kind": "label_mean", "inputs": [1.0], "outputs": [0.0], "upper": 9.0}, "outputs.0: "),
    ({"kind": "label_mean", "inputs": [1.0], "outputs": [2.0], "upper": -1.0}, "upper: "),
    ({"kind": "spline"}, "spline"),
])  # fmt: skip
def test_faults_are_named(content: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=r"^calibration\.json: tasks\.click.*" + message):
        Calibration.from_mapping({"tasks": {"click": content}}, "calibration.json")


@pytest.mark.parametrize(("task", "mapping", "message"), [
    ("clock", PLATT, "calibrates 'clock' by platt: this model has no such task"),
    ("play_time", ISOTONIC, "calibrates 'play_time' by isotonic: this model has no such task"),
    ("click", LABEL_MEAN, "calibrates 'click' by label_mean: this model has no such task"),
])  # fmt: skip
def test_a_map_that_is_not_of_its_task_is_named(task: str, mapping: AnswerMap, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Calibration(tasks={task: mapping}).bound(everything())
