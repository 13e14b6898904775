"""The line through the seeds of a curve against numpy's polyfit, and what is left where points are few."""

import numpy as np
import pytest

from training.compare.curves import Curve, curve_results, fit, plot

RNG = np.random.default_rng(0)


def seeds_at(*x: float) -> list[tuple[float, float]]:
    return [(place, 0.7 + 0.01 * place - 0.002 * place**2 + 0.01 * RNG.normal()) for place in x for _ in range(4)]


@pytest.mark.parametrize(("x", "degree"), [((1, 2, 3, 5, 8), 3), ((1, 2, 4), 2), ((1, 6), 1)])
def test_line_is_the_least_squares_polynomial(x: tuple[float, ...], degree: int) -> None:
    seeds = seeds_at(*x)
    found = fit(seeds)
    assert found is not None
    assert found["degree"] == degree
    places, values = np.array(seeds).T
    expected = np.polyfit(places, values, degree)[::-1]
    # Both solve the same small system, numpy's polyfit on powers of x as they are.
    np.testing.assert_allclose(found["coefficients"], expected, rtol=1e-7, atol=1e-10)
    residuals = values - np.polynomial.Polynomial(expected)(places)
    assert found["residual_sd"] == pytest.approx(np.sqrt(residuals @ residuals / (len(values) - degree - 1)), rel=1e-9)


def test_points_of_one_x_have_no_line() -> None:
    assert fit(seeds_at(2)) is None
    assert fit([]) is None
    two = fit([(1.0, 0.5), (2.0, 0.6)])
    assert two is not None
    assert two["residual_sd"] is None


def test_network_without_seeds_is_left_out_and_one_point_still_has_a_picture() -> None:
    curve = Curve.from_mapping({"title": "t", "x_label": "x", "points": {"late": 2, "one": 1}}, "curves")
    (found,) = curve_results([curve], {"auc": {"click": {"one": {"values": {"0": 0.7}}}, "mean": {}}})
    assert [point["network"] for point in found["points"]] == ["one"]
    assert found["fit"] is None
    assert plot(found).startswith(b"\x89PNG")
    (undefined,) = curve_results([curve], {})
    assert undefined["points"] == []
