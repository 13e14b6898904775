"""Contrasts: "this network is better than that one", tested one-sided over seeds on the test split.

    contrasts: [{better: fixed_random_routing, than: no_sharing, metric: auc, tasks: all, test: two_sample_one_tailed}]

In: the test split's tables of a results document. Out: for each contrast t, degrees of freedom and p of three tests.
`test` names the one that was planned, and the others are beside it. `p_holm` is the planned test's p after Holm's
correction for the number of contrasts in the file. (A.2 of "Re-examining Routing Networks for Multi-task Learning" is
the two-sample test with equal variances.)
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from model.schema import FeedSchema
from model.strict_yaml import StrictModel, unknown_key
from training.compare.document import Block, Heading, Paragraph, Table
from training.compare.measures import METRICS, MetricName, TaskNames, measured_tasks
from training.compare.statistics import holm, spread
from training.compare.tables import mean_over_tasks, used_tasks

Json = dict[str, Any]
Floats = NDArray[np.float64]
TestName = Literal["two_sample_one_tailed", "welch_one_tailed", "paired_one_tailed"]

TITLES: dict[TestName, str] = {
    "two_sample_one_tailed": "two-sample t",
    "welch_one_tailed": "Welch's t",
    "paired_one_tailed": "paired t",
}


class Contrast(StrictModel):
    """The claim that `better` has the better mean of `metric` over `tasks` than `than`."""

    better: str
    than: str
    metric: MetricName = "auc"
    tasks: TaskNames = "all"
    test: TestName = "two_sample_one_tailed"

    def check(self, networks: Sequence[str], metrics: Sequence[str]) -> None:
        """Raise ValueError for a network or metric that the experiment does not have."""
        for name in (self.better, self.than):
            if name not in networks:
                raise ValueError("contrasts: " + unknown_key(name, list(networks), "network"))
        if self.better == self.than:
            raise ValueError(f"contrasts: '{self.better}' is compared with itself; name two networks")
        if self.metric not in metrics:
            raise ValueError(f"contrasts: metric '{self.metric}' is not among metrics; add it there")
        if METRICS[self.metric].better is None:
            raise ValueError(f"contrasts: '{self.metric}' has no better direction; choose another metric")

    def check_tasks(self, schema: FeedSchema) -> None:
        """Raise ValueError for a task that the metric does not measure."""
        measured_tasks("contrasts", self.metric, self.tasks, schema)


def contrast_results(contrasts: Sequence[Contrast], tables: Mapping[str, Json]) -> list[Json]:
    """One entry per contrast. `tables` are the test split's. Without enough values the tests are null."""
    found = [_result(contrast, tables.get(contrast.metric, {})) for contrast in contrasts]
    planned = [entry["tests"][entry["test"]] for entry in found]
    corrected = holm({str(number): test["p"] for number, test in enumerate(planned) if test is not None})
    return [entry | {"p_holm": corrected.get(str(number))} for number, entry in enumerate(found)]


def contrast_blocks(results: Sequence[Json]) -> Iterator[Block]:
    """The report's table of contrasts, nothing where there are none."""
    if not results:
        return
    yield Heading(3, "Contrasts, test split")
    yield Paragraph(
        "One-sided tests over seeds of the claim in the first column, means over the tasks named. The difference is "
        "that of common seeds, with its 95 % interval. The test that was planned is marked *, and its p stands last, "
        "after Holm's correction for the number of contrasts."
    )
    head = ["claim", "metric", "tasks", "means", "difference"]
    head += [*(f"{title}: t, df, p" for title in TITLES.values()), "corrected p"]
    yield Table(head, [_row(found) for found in results], is_words=True)


def one_sided_tests(better: Floats, other: Floats, pairs: Sequence[tuple[float, float]]) -> dict[str, Json | None]:
    """t, df and p of "`better` has the larger mean" by test. Values are one per seed, `pairs` those of common seeds.

    A test is None below two seeds, or where values have no spread."""
    differences = np.array([one - two for one, two in pairs])
    found: dict[str, Json | None] = dict.fromkeys(TITLES)
    if min(better.size, other.size) > 1 and max(np.ptp(better), np.ptp(other)) > 0:
        for name, is_pooled in (("two_sample_one_tailed", True), ("welch_one_tailed", False)):
            found[name] = _test(stats.ttest_ind(better, other, equal_var=is_pooled, alternative="greater"))
    if differences.size > 1 and np.ptp(differences) > 0:
        found["paired_one_tailed"] = _test(stats.ttest_1samp(differences, 0.0, alternative="greater"))
    return found


def _test(found: Any) -> Json:
    return {"t": float(found.statistic), "df": float(found.df), "p": float(found.pvalue)}


def _result(contrast: Contrast, table: Mapping[str, Json]) -> Json:
    tasks = used_tasks(table, contrast.tasks)
    better, other = (mean_over_tasks(table, tasks, name) for name in (contrast.better, contrast.than))
    sign = 1.0 if METRICS[contrast.metric].better == "higher" else -1.0
    tests = one_sided_tests(
        sign * np.array([*better.values()]),
        sign * np.array([*other.values()]),
        [(sign * better[seed], sign * other[seed]) for seed in better if seed in other],
    )
    differences = [better[seed] - other[seed] for seed in better if seed in other]
    means = [statistics.fmean(values.values()) if values else None for values in (better, other)]
    return {
        **contrast.model_dump(mode="json"),
        "used_tasks": tasks,
        "means": means,
        "difference": asdict(spread(differences)) if differences else None,
        "tests": tests,
    }


def _row(found: Json) -> list[str]:
    means = " against ".join("-" if mean is None else f"{mean:.5f}" for mean in found["means"])
    row = [f"{found['better']} better than {found['than']}", METRICS[found["metric"]].title]
    row += [", ".join(found["used_tasks"]), means, _difference(found["difference"])]
    for name, test in found["tests"].items():
        shown = "-" if test is None else f"{test['t']:.3f}, {test['df']:.4g}, {test['p']:.2g}"
        row.append(f"{shown} *" if name == found["test"] else shown)
    return [*row, "-" if found["p_holm"] is None else f"{found['p_holm']:.2g}"]


def _difference(found: Json | None) -> str:
    if found is None:
        return "-"
    interval = "" if found["low"] is None else f" ({found['low']:+.5f}..{found['high']:+.5f})"
    return f"{found['mean']:+.5f}{interval}"
