"""One-sided contrasts against scipy, and that a file's contrasts and curves reach the report."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.training.compare.test_compare_run import NETWORKS, experiment_file, results_of
from tests.training_data import write_feed
from training.compare.contrasts import Contrast, contrast_results, one_sided_tests
from training.compare.runner import compare, load

RNG = np.random.default_rng(0)
BETTER, OTHER = RNG.normal(0.72, 0.02, 7), RNG.normal(0.70, 0.01, 5)


def test_tests_are_scipys() -> None:
    pairs = list(zip(BETTER, OTHER, strict=False))
    found = one_sided_tests(BETTER, OTHER, pairs)
    by_scipy = {
        "two_sample_one_tailed": stats.ttest_ind(BETTER, OTHER, alternative="greater"),
        "welch_one_tailed": stats.ttest_ind(BETTER, OTHER, equal_var=False, alternative="greater"),
        "paired_one_tailed": stats.ttest_rel(BETTER[:5], OTHER, alternative="greater"),
    }
    for name, test in by_scipy.items():
        entry = found[name]
        assert entry is not None
        assert (entry["t"], entry["df"], entry["p"]) == pytest.approx((test.statistic, test.df, test.pvalue), rel=1e-9)
    two_sample = found["two_sample_one_tailed"]
    assert two_sample is not None
    assert two_sample["df"] == len(BETTER) + len(OTHER) - 2


def test_without_spread_or_seeds_there_is_no_test() -> None:
    same = np.full(3, 0.5)
    assert set(one_sided_tests(same, same, [(0.5, 0.5)] * 3).values()) == {None}
    assert set(one_sided_tests(same[:1], same[:1], [(0.5, 0.4)]).values()) == {None}


def table(metric: str) -> dict[str, Any]:
    """Two tasks of two networks, three seeds. `good` has the lower values."""
    rng = np.random.default_rng(1)
    return {
        metric: {
            task: {
                name: {"values": {str(seed): shift + rng.random() for seed in range(3)}}
                for name, shift in {"good": 0.0, "bad": 2.0}.items()
            }
            for task in ("a", "b", "mean")
        }
    }


def test_a_lower_metric_is_better_where_it_is_so() -> None:
    tables = table("normalized_entropy")
    contrast = Contrast(better="good", than="bad", metric="normalized_entropy")
    reverse = Contrast(better="bad", than="good", metric="normalized_entropy", tasks=("a",))
    found, other = contrast_results([contrast, reverse], tables)
    # Holm: the smaller of two p counts twice, the larger once, and is never below the other.
    p_of = [entry["tests"][entry["test"]]["p"] for entry in (found, other)]
    assert found["p_holm"] == pytest.approx(min(1.0, 2 * p_of[0]))
    assert other["p_holm"] == pytest.approx(max(2 * p_of[0], p_of[1]))
    good, bad = (tables["normalized_entropy"]["a"][name]["values"] for name in ("good", "bad"))
    assert other["difference"]["mean"] == pytest.approx(np.mean([bad[seed] - good[seed] for seed in good]))
    assert found["used_tasks"] == ["a", "b"]
    means = {
        name: [
            (tables["normalized_entropy"]["a"][name]["values"][seed] + entry["values"][seed]) / 2
            for seed in ("0", "1", "2")
        ]
        for name, entry in tables["normalized_entropy"]["b"].items()
    }
    p = stats.ttest_ind(means["good"], means["bad"], alternative="less").pvalue
    assert found["tests"]["two_sample_one_tailed"]["p"] == pytest.approx(p, rel=1e-9)
    assert other["tests"]["two_sample_one_tailed"]["p"] > 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contrasts": [{"better": "adat", "than": "bottom"}]}, "unknown network 'adat'; did you mean 'adatt'"),
        ({"contrasts": [{"better": "adatt", "than": "adatt"}]}, "compared with itself"),
        ({"contrasts": [{"better": "adatt", "than": "bottom", "metric": "mse"}]}, "'mse' is not among metrics"),
        ({"contrasts": [{"better": "adatt", "than": "bottom", "tasks": ["clik"]}]}, "did you mean 'click'"),
        ({"contrasts": [{"better": "adatt", "than": "bottom", "test": "t"}]}, "contrasts.0.test"),
        ({"curves": [{"title": "c", "x_label": "x", "points": {"adat": 1}}]}, "did you mean 'adatt'"),
        ({"curves": [{"title": "c", "x_label": "x", "points": {}}]}, "curves.0.points"),
        ({"curves": [{"title": "c", "x_label": "x", "points": {"adatt": 1}, "tasks": ["watch"]}]}, "no binary task"),
    ],
)
def test_what_is_wrong_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the message is compared below, as plain text
        load(experiment_file(tmp_path, **changes), {}).configs()
    assert message in str(refused.value)


def test_file_with_contrasts_and_curves_reports_both(tmp_path: Path) -> None:
    write_feed(tmp_path / "data", 600)
    contrasts = [{"better": "adatt", "than": "bottom", "tasks": ["click"]}]
    curves = [{"title": "AUC against width", "x_label": "width", "points": {"adatt": 16, "bottom": 8}}]
    page = compare(load(experiment_file(tmp_path, networks=NETWORKS, contrasts=contrasts, curves=curves), {}))
    dataset = results_of(tmp_path)["datasets"]["clips"]
    values = [[*dataset["tables"]["test"]["auc"]["click"][name]["values"].values()] for name in ("adatt", "bottom")]
    expected = stats.ttest_ind(*values, alternative="greater")
    tests = dataset["contrasts"][0]["tests"]
    assert tests["two_sample_one_tailed"]["p"] == pytest.approx(expected.pvalue, rel=1e-9)
    markdown = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert f"{expected.statistic:.3f}, 2, {expected.pvalue:.2g} *" in markdown
    (curve,) = dataset["curves"]
    assert [(point["network"], point["x"], point["n"]) for point in curve["points"]] == [
        ("bottom", 8.0, 2),
        ("adatt", 16.0, 2),
    ]
    # A line through two x goes through their means.
    intercept, slope = curve["fit"]["coefficients"]
    for point in curve["points"]:
        assert intercept + slope * point["x"] == pytest.approx(point["mean"], rel=1e-9)
    assert 'alt="AUC against width" src="data:image/png' in page.read_text(encoding="utf-8")
    assert "### AUC against width, test split" in markdown
