"""Calibration of several classes: the fit against Platt's of two, its totals, and what it does to probabilities."""

import numpy as np
import pytest
from numpy.typing import NDArray

from model.calibration import BiasCorrectedTemperature, Calibration, calibrated
from tests.training.tasks.test_multiclass import SCHEMA
from training.metrics.multiclass import softmax
from training.tasks.probability_maps import NotCalibratedError, fit_bias_corrected_temperature, fit_platt

Floats = NDArray[np.float64]


def overconfident(classes: int, rows: int = 4000) -> tuple[Floats, Floats]:
    """Labels drawn from a softmax, and probabilities of twice its logits with a class too many of."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 1.0, (rows, classes))
    labels = np.array([rng.choice(classes, p=p) for p in softmax(logits)], np.float64)
    return labels, softmax(2 * logits + np.arange(classes) / 2)


def test_of_two_classes_it_is_platt_s_map() -> None:
    labels, probabilities = overconfident(2)
    found = fit_bias_corrected_temperature(labels, probabilities)
    platt = fit_platt(labels, probabilities[:, 1], np.ones(len(labels)))
    # Two optimisations of one convex function, each ended at a gradient of 1e-10.
    assert found.slope == pytest.approx(platt.slope, rel=1e-5)
    assert found.intercepts[1] - found.intercepts[0] == pytest.approx(platt.intercept, rel=1e-5)
    np.testing.assert_allclose(found(probabilities)[:, 1], platt(probabilities[:, 1]), atol=1e-6)


def test_what_was_done_to_probabilities_is_undone() -> None:
    labels, probabilities = overconfident(4)
    found = fit_bias_corrected_temperature(labels, probabilities)
    after = found(probabilities)
    np.testing.assert_allclose(after.sum(axis=1), 1.0, rtol=1e-12)
    # At the maximum of the likelihood the classes' totals are those of the labels.
    np.testing.assert_allclose(after.sum(axis=0), np.bincount(labels.astype(int)), rtol=1e-6)
    # The standard error of the slope of 4,000 rows is about 0.02.
    assert found.slope == pytest.approx(0.5, abs=0.06)


def test_a_row_of_weight_three_is_three_rows() -> None:
    labels, probabilities = overconfident(3)
    times = np.random.default_rng(5).integers(1, 4, len(labels))
    repeated = fit_bias_corrected_temperature(np.repeat(labels, times), np.repeat(probabilities, times, axis=0))
    found = fit_bias_corrected_temperature(labels, probabilities, times / times.mean())
    # Two optimisations of one convex function, each ended at a gradient of 1e-10.
    np.testing.assert_allclose(found(probabilities), repeated(probabilities), atol=1e-6)


def test_too_few_labels_are_said() -> None:
    labels, probabilities = overconfident(3)
    labels[labels == 1] = 0
    with pytest.raises(NotCalibratedError, match="4000 labels of the validation split, 0 of the rarest class"):
        fit_bias_corrected_temperature(labels, probabilities)


def test_only_its_own_task_s_columns_change() -> None:
    mapping = BiasCorrectedTemperature(kind="bias_corrected_temperature", slope=0.5, intercepts=(0.0, 1.0, -1.0))
    mappings = Calibration(tasks={"rating": mapping}).bound(SCHEMA)
    answers = np.full((2, 7), 0.5, np.float32)
    answers[:, 1:4] = [[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]]
    found = calibrated(answers, mappings)
    weights = np.sqrt([0.0, 0.25, 0.75]) * np.exp([0.0, 1.0, -1.0])
    np.testing.assert_allclose(found[0, 1:4], weights / weights.sum(), rtol=1e-6)  # of float32
    np.testing.assert_array_equal(found[1, 1:4], [1.0, 0.0, 0.0])
    np.testing.assert_array_equal(np.delete(found, [1, 2, 3], axis=1), 0.5)
    answers[0, 2] = np.nan
    assert np.isnan(calibrated(answers, mappings)[0, 1:4]).all()


@pytest.mark.parametrize("task", ["mood", "click", "watch", "other"])
def test_a_map_of_another_task_is_refused(task: str) -> None:
    mapping = BiasCorrectedTemperature(kind="bias_corrected_temperature", slope=1.0, intercepts=(0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match=f"calibrates '{task}' by bias_corrected_temperature: this model has no such"):
        Calibration(tasks={task: mapping}).bound(SCHEMA)
