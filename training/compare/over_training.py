"""Comparison of networks while they train: relative errors on the validation split at each point of their logs.

In: the runs of a dataset, each with its log.csv. Out: `results["datasets"][dataset]["during_training"]`:

    points   [{passes, rows}]: passes over the training split, and its rows seen until then
    tasks    {task or "mean": {network: [entry or null for each point]}}, an entry with every seed's value, their mean
             and interval, and the difference from the baseline in percent, paired by seed
    inside   {column of the log: {network: [mean over seeds for each point]}}: gates, policies, balancing weights

Values are NE for a binary task and squared error over the labels' variance for a regression task. Lower is better.
Seeds stop at different epochs: an entry is over those that came so far.
"""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from fractions import Fraction
from typing import Any

from training.compare.document import Block, Heading, Image, Paragraph, Table
from training.compare.experiment import Cell
from training.compare.inside_plots import plot_over_training
from training.compare.resampling import MEAN
from training.compare.statistics import spread
from training.run.history import (
    BALANCING_WEIGHT,
    EXPERTS_USED,
    GATE_ENTROPY,
    PERPLEXITY,
    PLACEBO_PERPLEXITY,
    VALIDATION,
    read_log,
)
from training.run.run import LOG, Run
from training.tasks import KINDS

# Of the points of a long training a table shows no more.
COLUMNS = 6
INSIDE = (GATE_ENTROPY, EXPERTS_USED, PERPLEXITY, PLACEBO_PERPLEXITY, BALANCING_WEIGHT)

Json = dict[str, Any]
# network -> seed -> passes over the training split -> line of the log
Logs = dict[str, dict[int, dict[Fraction, dict[str, float]]]]


def during_training(baseline: str, runs: Mapping[Cell, Run]) -> Json | None:
    """The section of a dataset. None where no run has more than one point. Raises ValueError for a broken log."""
    logs: Logs = {}
    rows_at: dict[Fraction, int] = {}
    tasks: list[str] = []
    for cell, run in runs.items():
        if not (run.path / LOG).exists():  # trained by other means than steps
            continue
        tasks = tasks or [task.name for task in run.schema.tasks]
        of_seed = logs.setdefault(cell.network, {}).setdefault(cell.seed, {})
        train_rows = run.summary()["rows"]["train"]
        for number, line in enumerate(read_log(run), start=1):
            passes = Fraction(number, run.config.evaluations_per_epoch)
            of_seed[passes] = line
            # Runs from before there were points have no rows in their log.
            rows_at.setdefault(passes, int(line.get("rows", passes * train_rows)))
    points = sorted(rows_at)
    if len(points) < 2:
        return None
    lines = [line for of_network in logs.values() for of_seed in of_network.values() for line in of_seed.values()]
    measured = [task for task in tasks if all(f"{VALIDATION}{task}" in line for line in lines)]
    columns = {task: [f"{VALIDATION}{task}"] for task in measured}
    if len(measured) > 1:
        columns[MEAN] = [f"{VALIDATION}{task}" for task in measured]
    inside = dict.fromkeys(name for line in lines for name in line if name.startswith(INSIDE))
    return {
        "points": [{"passes": float(passes), "rows": rows_at[passes]} for passes in points],
        "tasks": {task: _task(baseline, logs, points, names) for task, names in columns.items()},
        "inside": {name: found for name in inside if (found := _means(logs, points, name))},
    }


def _task(baseline: str, logs: Logs, points: list[Fraction], names: list[str]) -> Json:
    """[network] -> an entry for each point, of the mean over the columns `names`."""

    def values(network: str, passes: Fraction) -> dict[int, float]:
        return {
            seed: statistics.fmean(of_seed[passes][name] for name in names)
            for seed, of_seed in logs.get(network, {}).items()
            if passes in of_seed
        }

    return {
        network: [
            _entry(values(network, passes), None if network == baseline else values(baseline, passes))
            for passes in points
        ]
        for network in logs
    }


def _entry(values: Mapping[int, float], base: Mapping[int, float] | None) -> Json | None:
    """Entry of a point, None where no seed came so far. `base` is None for the baseline itself."""
    if not values:
        return None
    entry: Json = {"values": {str(seed): value for seed, value in values.items()}} | asdict(spread([*values.values()]))
    pairs = [(value, base[seed]) for seed, value in values.items() if seed in base] if base else []
    if pairs:
        unit = statistics.fmean(other for _, other in pairs) / 100
        found = spread([(value - other) / unit for value, other in pairs])
        entry["against_baseline"] = {
            "seeds": found.n,
            "percent": found.mean,
            "percent_low": found.low,
            "percent_high": found.high,
        }
    return entry


def _means(logs: Logs, points: list[Fraction], name: str) -> dict[str, list[float | None]]:
    """[network] -> the mean over seeds of a column at each point, for the networks that have it."""
    found = {
        network: [
            [of_seed[passes][name] for of_seed in by_seed.values() if name in of_seed.get(passes, {})]
            for passes in points
        ]
        for network, by_seed in logs.items()
    }
    return {
        network: [statistics.fmean(values) if values else None for values in by_point]
        for network, by_point in found.items()
        if any(by_point)
    }


def blocks(dataset: Json, baseline: str) -> Iterator[Block]:
    """The section of a report: per task a table and one picture of all. Nothing where there is one point alone, or the
    baseline has none."""
    during = dataset.get("during_training")
    if during is None or not all(baseline in by_network for by_network in during["tasks"].values()):
        return
    yield Heading(3, "During training, validation split")
    yield Paragraph(
        "NE (binary tasks) or squared error over the labels' variance (regression tasks) after so many training rows: "
        f"of {baseline} as it is, of the others as their difference from {baseline} with the same seed, in percent "
        "with the 95 % interval over seeds. Negative is better. The last column is the test split, answered by the "
        "best point."
    )
    shown = _shown(len(during["points"]))
    for task, by_network in during["tasks"].items():
        tested, unit = _test_entries(dataset, task)
        head = ["mean over tasks" if task == MEAN else task]
        head += [f"{during['points'][position]['rows']:,} rows" for position in shown]
        head += ["test"] if tested else []
        rows = []
        for network, entries in by_network.items():
            cells = [_words(entries[position], is_baseline=network == baseline) for position in shown]
            cells += [_test_words(tested, network, baseline, unit)] if tested else []
            rows.append([network, *cells])
        yield Table(head, rows)
    png = plot_over_training(during, baseline)
    if png is not None:
        yield Image(f"difference from {baseline} during training", png)


def _shown(num_points: int) -> list[int]:
    """Positions, at most COLUMNS, evenly spaced, the last among them."""
    count = min(num_points, COLUMNS)
    return [-(-k * num_points // count) - 1 for k in range(1, count + 1)]


def _words(entry: Json | None, *, is_baseline: bool) -> str:
    if entry is not None and is_baseline:
        return f"{entry['mean']:.5f}"
    found = None if entry is None else entry.get("against_baseline")
    if found is None:  # it came, or the baseline came, not so far
        return "-"
    half = "" if found["percent_low"] is None else f" +- {found['percent_high'] - found['percent']:.3f}"
    return f"{found['percent']:+.3f}{half}"


def _test_entries(dataset: Json, task: str) -> tuple[Json, str]:
    """The test split's entries of the same error, and what it is where it has another unit. Differences in percent have
    none. The mean is another where not all tasks have NE."""
    tables = dataset["tables"]["test"]
    kinds = {found["kind"] for found in dataset["splits"]["test"]["tasks"].values()}
    if task == MEAN and any("normalized_entropy" not in KINDS[kind].metrics for kind in kinds):
        return {}, ""
    for metric, unit in (("normalized_entropy", ""), ("mse", "MSE ")):
        if task in tables.get(metric, {}):
            return dict(tables[metric][task]), unit
    return {}, ""


def _test_words(tested: Json, network: str, baseline: str, unit: str) -> str:
    entry = tested.get(network)
    if entry is not None and network == baseline:
        return f"{unit}{entry['mean']:.5f}"
    found = None if entry is None else entry.get("against_baseline")
    if found is None or found["percent"] is None:
        return "-"
    half = ""
    if found["low"] is not None:
        half = f" +- {100 * (found['high'] - found['difference']) / tested[baseline]['mean']:.3f}"
    return f"{found['percent']:+.3f}{half}"
