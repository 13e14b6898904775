"""Predictions of trained cells -> the results of a comparison, as plain values for results.json.

results["datasets"][dataset]["tables"][split][metric][task or "mean"][network] has the value of every seed, their mean
with its t interval, and the difference from the baseline: over the seeds that both have, in the metric's unit and in
percent, with a paired test over seeds and, on the test split, a paired bootstrap over users and one interval and test
over seeds and users together. Both tests are corrected after Holm over the networks.

Shapes: B rows, O outputs, R draws of users, S seeds.
"""

import json
import os
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.compare.boosted_trees import is_trees, tree_costs
from training.compare.budget import pareto_front, under_budget
from training.compare.cautions import cautions
from training.compare.contrasts import contrast_results
from training.compare.cost import sizes, training_rows_per_second
from training.compare.curves import curve_results
from training.compare.experiment import Cell, Experiment
from training.compare.inside import inspect_networks
from training.compare.measures import METRICS
from training.compare.over_training import during_training
from training.compare.predictions import Truth, prediction_file, read_predictions, truth_of
from training.compare.resampling import MEAN, Replicates, paired_replicates
from training.compare.scoring_cost import CANDIDATES, scoring_costs
from training.compare.statistics import crossed, holm, minimum_detectable, paired_p, seeds_needed, spread
from training.compare.verdict import choice, verdicts
from training.config import SplitName, TrainingConfig
from training.metrics.bootstrap import Floats, percentile_interval
from training.run.run import SUMMARY, Run, library_versions, read_json, write_json
from training.tasks import KINDS

SPLITS: tuple[SplitName, ...] = ("validation", "test")

Json = dict[str, Any]
# network -> seed -> outputs_BO
Outputs = dict[str, dict[int, NDArray[np.float32]]]


def analyse(experiment: Experiment, done: Mapping[Cell, TrainingConfig], failures: Mapping[str, str]) -> Json:
    """All results of the finished cells. `failures` is cell -> reason. Raises ValueError for broken predictions."""
    return {
        # Where it ran is no result.
        "experiment": json.loads(experiment.model_dump_json(by_alias=True, exclude={"output", "processes"})),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cores": len(os.sched_getaffinity(0)),
        "libraries": library_versions(),
        "cells": {
            "planned": len(experiment.cells()),
            "finished": len(done),
            "training_seconds": sum(read_json(config.output / SUMMARY)["seconds"] for config in done.values()),
        },
        "failures": dict(failures),
        "datasets": {
            dataset.name: _dataset(experiment, {cell: done[cell] for cell in done if cell.dataset == dataset.name})
            for dataset in experiment.datasets
            if any(cell.dataset == dataset.name for cell in done)
        },
    }


def _dataset(experiment: Experiment, done: Mapping[Cell, TrainingConfig]) -> Json:
    runs = {cell: Run.open(config.output) for cell, config in done.items()}
    first = next(iter(runs.values()))
    result: Json = {"splits": {}, "tables": {}, "undefined": [], "cost": _costs(experiment.output, runs)}
    for split in SPLITS:
        truth = truth_of(first, split)
        outputs: Outputs = {}
        for name in experiment.network_names:
            for cell, run in runs.items():
                if cell.network == name:
                    found = read_predictions(prediction_file(run.path, split), truth)
                    outputs.setdefault(name, {})[cell.seed] = found
        result["splits"][split] = {"rows": truth.rows, "users": truth.num_groups, "tasks": _tasks(truth)}
        result["tables"][split] = {
            metric: table
            for metric in experiment.metrics
            if (table := _table(experiment, metric, truth, outputs, result["undefined"], split))
        }
    result["seeds"] = {name: sorted(by_seed) for name, by_seed in outputs.items()}
    tasks = experiment.verdict_tasks(first.schema)
    result["choice"] = choice(experiment.verdict, result["tables"]["validation"].get(experiment.verdict.metric, {}))
    result["verdicts"] = verdicts(experiment.verdict, tasks, experiment.baseline, result["tables"]["test"])
    # `truth` and `outputs` are the last split's, the test split's.
    auc = result["tables"]["test"].get("auc") or _table(experiment, "auc", truth, outputs, [], "test")
    for name, found in result["verdicts"].items():
        counts = result["splits"]["test"]["tasks"]
        found["cautions"] = cautions(name, experiment.baseline, tasks, result["cost"], counts, auc)
    result["scoring"] = _scoring(experiment, runs, result["tables"]["validation"])
    result["contrasts"] = contrast_results(experiment.contrasts, result["tables"]["test"])
    result["curves"] = curve_results(experiment.curves, result["tables"]["test"])
    result["during_training"] = during_training(experiment.baseline, runs)
    result["inside"] = inspect_networks(experiment.output, runs) if experiment.inside else None
    return result


def _tasks(truth: Truth) -> Json:
    return {
        task.name: {"kind": task.kind, "rows": len(task.rows_B), **KINDS[task.kind].label_counts(task.labels_B)}
        for task in truth.tasks
    }


def _table(
    experiment: Experiment, metric: str, truth: Truth, outputs: Outputs, undefined: list[Json], split: SplitName
) -> Json:
    """[task or MEAN][network] -> entry. A task on which the metric is undefined is left out, and noted."""
    values: dict[str, dict[str, dict[int, float]]] = {}
    for task in truth.tasks:
        if metric not in KINDS[task.kind].metrics:
            continue
        of_task: dict[str, dict[int, float]] = {name: {} for name in outputs}
        reason = None
        for name, by_seed in outputs.items():
            for seed, outputs_BO in by_seed.items():
                value, reason = task.measure(metric, outputs_BO)
                if value is not None:
                    of_task[name][seed] = value
        if reason is not None:
            undefined.append({"split": split, "task": task.name, "metric": metric, "reason": reason})
        else:
            values[task.name] = of_task
    averaged = _averaged_tasks(experiment, metric, list(values))
    if averaged:
        values[MEAN] = {
            name: {seed: statistics.fmean(values[task][name][seed] for task in averaged) for seed in by_seed}
            for name, by_seed in outputs.items()
        }
    replicates = Replicates()
    if split == "test" and METRICS[metric].better is not None and experiment.baseline in outputs:
        replicates = _over_users(experiment, metric, truth, outputs, averaged, list(values))
    return {task: _entries(experiment, metric, task, of_task, replicates) for task, of_task in values.items()}


def _averaged_tasks(experiment: Experiment, metric: str, defined: list[str]) -> list[str]:
    """The tasks of the mean: the verdict's, where it names them, and the metric is defined on them."""
    named = experiment.verdict.tasks
    if METRICS[metric].better is None:
        return []
    return [task for task in defined if named == "all" or metric != experiment.verdict.metric or task in named]


def _over_users(
    experiment: Experiment, metric: str, truth: Truth, outputs: Outputs, averaged: list[str], defined: list[str]
) -> Replicates:
    by_name = {task.name: task for task in truth.tasks}
    found = Replicates()
    # The mean's tasks together, for the mean needs them on the same draws. The others are on their own.
    for names in (averaged, *([name] for name in defined if name not in (*averaged, MEAN))):
        tasks = [by_name[name] for name in names]
        of_tasks = {
            network: {
                task.name: {seed: task.outputs_of(outputs_BO) for seed, outputs_BO in by_seed.items()} for task in tasks
            }
            for network, by_seed in outputs.items()
        }
        replicates = paired_replicates(
            metric, tasks, of_tasks, experiment.baseline, truth.num_groups, replicates=experiment.replicates
        )
        for name in (*names, MEAN) if names is averaged else names:
            found.levels_R[name] = replicates.levels_R.get(name, {})
            found.differences_RS[name] = replicates.differences_RS.get(name, {})
    return found


def _entries(
    experiment: Experiment,
    metric: str,
    task: str,
    by_network: Mapping[str, Mapping[int, float]],
    replicates: Replicates,
) -> Json:
    levels_R, differences_RS = replicates.levels_R.get(task, {}), replicates.differences_RS.get(task, {})
    entries: Json = {
        name: {"values": {str(seed): value for seed, value in by_seed.items()}}
        | asdict(spread([*by_seed.values()]))
        | _over_users_alone(levels_R.get(name))
        for name, by_seed in by_network.items()
    }
    baseline = by_network.get(experiment.baseline)
    if baseline is None or METRICS[metric].better is None:
        return entries
    for name, by_seed in by_network.items():
        pairs = [(by_seed[seed], baseline[seed]) for seed in by_seed if seed in baseline]
        if name != experiment.baseline and pairs:
            entries[name]["against_baseline"] = _difference(experiment, pairs, differences_RS.get(name))
    tested = {name: found["against_baseline"] for name, found in entries.items() if "against_baseline" in found}
    for p in ("p", "both_p"):
        corrected = holm({name: found[p] for name, found in tested.items() if found[p] is not None})
        for name, found in tested.items():
            found[f"{p}_holm"] = corrected.get(name)
    return entries


def _difference(experiment: Experiment, pairs: list[tuple[float, float]], replicates_RS: Floats | None) -> Json:
    differences = [one - other for one, other in pairs]
    found = spread(differences)
    verdict = experiment.verdict
    base = statistics.fmean(other for _, other in pairs)
    # Holm's first step, at which the smallest p of the family is tested: what is found there is found for certain.
    alpha = verdict.alpha / max(len(experiment.networks) - 1, 1)
    wanted = verdict.difference or abs(found.mean)
    both = None if replicates_RS is None else crossed(differences, replicates_RS)
    users_sd = 0.0 if both is None else both.users_sd
    return {
        "seeds": found.n,
        "difference": found.mean,
        "sd": found.sd,
        "low": found.low,
        "high": found.high,
        "percent": 100 * found.mean / base if base else None,
        "p": paired_p(differences),
        **_over_users_alone(None if replicates_RS is None else replicates_RS.mean(axis=1)),
        "users_sd": users_sd,
        "both_low": None if both is None else both.low,
        "both_high": None if both is None else both.high,
        "both_p": None if both is None else both.p,
        "minimum_detectable": None
        if found.sd is None
        else minimum_detectable(found.sd, found.n, alpha, verdict.power, users_sd),
        "difference_wanted": wanted,
        "seeds_needed": None if found.sd is None else seeds_needed(wanted, found.sd, alpha, verdict.power, users_sd),
    }


def _over_users_alone(replicates_R: Floats | None) -> Json:
    interval = None if replicates_R is None else percentile_interval(replicates_R)
    low, high = (None, None) if interval is None else interval
    return {"users_low": low, "users_high": high}


def _scoring(experiment: Experiment, runs: Mapping[Cell, Run], tables: Mapping[str, Json]) -> Json:
    """Cost of scoring by network, its front with the verdict's metric on the validation split, and the budget's choice.
    Trees cannot be served, and are in neither."""
    first = {cell.network: run for cell, run in reversed(list(runs.items()))}
    folder = experiment.output / next(iter(runs)).dataset
    costs = scoring_costs(
        folder, {name: first[name] for name in experiment.network_names if name in first}, experiment.baseline
    )
    found: Json = {"costs": costs, "front": [], "budget": None}
    better = METRICS[experiment.verdict.metric].better
    entries = tables.get(experiment.verdict.metric, {}).get(MEAN, {})
    values = {name: entry["values"] for name, entry in entries.items() if not is_trees(first[name])}
    if better is None or not values:
        return found
    most = str(max(CANDIDATES))
    means = {name: entries[name]["mean"] for name in values}
    found["front"] = pareto_front({name: costs[name][most]["ms"] for name in values}, means, better)
    if experiment.budget is not None:
        asked = str(experiment.budget.candidates)
        ms = {name: costs[name][asked]["ms"] for name in values}
        found["budget"] = under_budget(experiment.budget, ms, values, better)
    return found


def _costs(output: Path, runs: Mapping[Cell, Run]) -> Json:
    """Sizes per network and its speed in training, kept in its folder, so that it is measured once. Sizes are the mean
    over seeds, for routes that are drawn differ in size."""
    costs: Json = {}
    for name in dict.fromkeys(cell.network for cell in runs):
        of_network = {cell: run for cell, run in runs.items() if cell.network == name}
        cell, first = next(iter(of_network.items()))
        if is_trees(first):
            costs[name] = tree_costs(list(of_network.values()))
            continue
        file = output / cell.dataset / name / "times.json"
        if not file.exists():
            write_json(file, {"training_rows_per_cpu_second": training_rows_per_second(first)})
        found = [sizes(run) for run in of_network.values()]
        costs[name] = {
            **{key: statistics.fmean(size[key] for size in found) for key in found[0]},
            "parameters_range": [min(size["parameters"] for size in found), max(size["parameters"] for size in found)],
            **read_json(file),
        }
    return costs
