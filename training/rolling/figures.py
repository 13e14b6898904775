"""Answers of all methods to the test day -> figures: values, differences from the baseline, intervals, power.

In: trained methods, every seed with its answers. Out: plain values for results.json:
- `all`, and each slice: by metric the mean over the comparison's tasks and every task, seed by seed, with the
  difference from the baseline over seeds and users together (statistics.py: crossed), the percentiles of draws of both,
  and the smallest difference that the test would find
- `ensembles`: the same of each method's mean answer over its seeds, over users alone
Holm's correction is over the methods for means, and over methods and tasks for tasks.

Shapes: B rows of the day, N rows where a task is observed, O outputs, R draws, S seeds.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from training.columns import plain
from training.compare.measures import METRICS, TaskTruth
from training.compare.predictions import prediction_file, read_predictions, truth_of
from training.compare.resampling import MEAN, Replicates, paired_replicates
from training.compare.statistics import crossed, holm, minimum_detectable, power, spread
from training.config import TrainingConfig
from training.data.rows import read_splits
from training.metrics.bootstrap import Floats, percentile_interval
from training.rolling.rolling_file import RollingFile
from training.run.run import Run
from training.split_config import Range, Selection
from training.tasks import KINDS

ALL = "all"
ENSEMBLE = 0
DRAWS_SEED = 0

Json = dict[str, Any]
Mask = NDArray[np.bool_]
# method -> seed -> task -> outputs_NO.
Answers = dict[str, dict[int, dict[str, Floats]]]


def figures_of_day(file: RollingFile, configs: Mapping[tuple[str, int], TrainingConfig]) -> Json:
    """Figures of the test day. `configs` are (method, seed) -> a run that has answered it. Raises ValueError where two
    methods have answered different rows."""
    tasks, answers, num_users = _answers(file, configs)
    first = Run.open(next(iter(configs.values())).output)
    slices = {ALL: _slice(file, tasks, answers, num_users)}
    for name, is_in_B in _masks(file, first).items():
        part = [_part(task, is_in_B) for task in tasks]
        slices[name] = _slice(file, part, _answers_of_part(answers, tasks, is_in_B), num_users)
    mean = {
        method: {ENSEMBLE: {task.name: np.mean([of[task.name] for of in by_seed.values()], axis=0) for task in tasks}}
        for method, by_seed in answers.items()
    }
    ensembles = {metric: _ensembles(file, metric, tasks, mean, num_users) for metric in file.metrics}
    return {"slices": slices, "ensembles": ensembles}


def _answers(
    file: RollingFile, configs: Mapping[tuple[str, int], TrainingConfig]
) -> tuple[list[TaskTruth], Answers, int]:
    shared: list[TaskTruth] = []
    answers: Answers = {}
    num_users = 0
    for (method, seed), config in configs.items():
        run = Run.open(config.output)
        truth = truth_of(run, "test")
        outputs_BO = read_predictions(prediction_file(run.path, "test"), truth)
        own = [next(task for task in truth.tasks if task.name == name) for name in file.tasks]
        if not shared:
            shared, num_users = own, truth.num_groups
        for one, other in zip(own, shared, strict=True):
            same = (
                np.array_equal(getattr(one, key), getattr(other, key)) for key in ("rows_B", "labels_B", "groups_B")
            )
            if not all(same):
                raise ValueError(f"{run.path}: {one.name} has other rows or labels there than other methods; run again")
        answers.setdefault(method, {})[seed] = {task.name: task.outputs_of(outputs_BO) for task in own}
    return shared, answers, num_users


def _masks(file: RollingFile, run: Run) -> dict[str, Mask]:
    """By slice the test day's rows in it [B]. Raises ValueError for a column that the data lacks."""
    if not file.slices:
        return {}
    columns = tuple(dict.fromkeys(part.column for part in file.slices))
    table = read_splits(run.config.data, run.schema, ("test",), extra=columns)["test"]
    return {part.name: kept_rows(table.column(part.column), part.keep) for part in file.slices}


def kept_rows(column: pa.ChunkedArray, keep: Selection) -> Mask:
    """Rows whose value is selected. A null is not."""
    values = plain(column)
    if isinstance(keep, Range):
        parts = [pc.is_valid(values)]
        parts += [] if keep.min is None else [pc.greater_equal(values, keep.min)]
        parts += [] if keep.max is None else [pc.less_equal(values, keep.max)]
        mask = parts[0]
        for part in parts[1:]:
            mask = pc.and_(mask, part)
    else:
        wanted = keep if isinstance(keep, list) else [keep]
        mask = pc.is_in(values, value_set=pa.array(wanted).cast(values.type))
    found: Mask = np.asarray(pc.fill_null(mask, False).to_numpy(zero_copy_only=False), bool)
    return found


def _part(task: TaskTruth, is_in_B: Mask) -> TaskTruth:
    is_in_N = is_in_B[task.rows_B]
    return replace(task, rows_B=task.rows_B[is_in_N], labels_B=task.labels_B[is_in_N], groups_B=task.groups_B[is_in_N])


def _answers_of_part(answers: Answers, tasks: Sequence[TaskTruth], is_in_B: Mask) -> Answers:
    return {
        method: {
            seed: {task.name: of_seed[task.name][is_in_B[task.rows_B]] for task in tasks}
            for seed, of_seed in by_seed.items()
        }
        for method, by_seed in answers.items()
    }


def _slice(file: RollingFile, tasks: Sequence[TaskTruth], answers: Answers, num_users: int) -> Json:
    rows = {task.name: len(task.rows_B) for task in tasks}
    users = len(np.unique(np.concatenate([task.groups_B for task in tasks])))
    counts = {task.name: KINDS[task.kind].label_counts(task.labels_B) for task in tasks}
    metrics = {metric: _metric(file, metric, tasks, answers, num_users) for metric in file.metrics}
    return {"rows": rows, "users": users, "labels": counts, "metrics": metrics}


def _metric(file: RollingFile, metric: str, tasks: Sequence[TaskTruth], answers: Answers, num_users: int) -> Json:
    """By task, and MEAN over those on which it is defined, by method: values and difference from the baseline."""
    values: dict[str, dict[str, dict[int, float]]] = {}
    defined = []
    for task in tasks:
        of_task = {
            method: {seed: _value(metric, task, of[task.name]) for seed, of in by_seed.items()}
            for method, by_seed in answers.items()
        }
        found = {
            method: {seed: value for seed, value in by_seed.items() if value is not None}
            for method, by_seed in of_task.items()
        }
        if all(len(found[method]) == len(answers[method]) for method in answers):
            defined.append(task)
            values[task.name] = found
    if not defined:
        return {"left_out": [task.name for task in tasks]}
    values[MEAN] = {
        method: {seed: statistics.fmean(values[task.name][method][seed] for task in defined) for seed in by_seed}
        for method, by_seed in answers.items()
    }
    replicates = _replicates(file, metric, defined, answers, num_users)
    entries = {
        name: {method: _entry(file, name, method, of_task, replicates) for method in answers}
        for name, of_task in values.items()
    }
    _correct(entries, [MEAN])
    _correct(entries, [task.name for task in defined])
    return {"left_out": [task.name for task in tasks if task not in defined], "tasks": entries}


def _value(metric: str, task: TaskTruth, outputs_NO: Floats) -> float | None:
    if not len(task.rows_B):
        return None
    return KINDS[task.kind].metrics[metric].value(task.labels_B, outputs_NO, task.groups_B)


def _replicates(
    file: RollingFile, metric: str, tasks: Sequence[TaskTruth], answers: Answers, num_users: int
) -> Replicates:
    of_tasks = {
        method: {task.name: {seed: of[task.name] for seed, of in by_seed.items()} for task in tasks}
        for method, by_seed in answers.items()
    }
    return paired_replicates(metric, tasks, of_tasks, file.baseline, num_users, replicates=file.replicates)


def _entry(
    file: RollingFile, task: str, method: str, values: Mapping[str, Mapping[int, float]], replicates: Replicates
) -> Json:
    found: Json = {"values": {str(seed): value for seed, value in values[method].items()}}
    found |= asdict(spread([*values[method].values()]))
    if method == file.baseline:
        return found
    base = values[file.baseline]
    differences = [value - base[seed] for seed, value in values[method].items()]
    draws_RS = replicates.differences_RS.get(task, {}).get(method)
    both = None if draws_RS is None else crossed(differences, draws_RS)
    over_seeds = spread(differences)
    against: Json = {"difference": over_seeds.mean, "sd": over_seeds.sd, "seeds": over_seeds.n}
    interval = None if draws_RS is None else percentile_interval(drawn_seeds(draws_RS))
    against |= dict(zip(("drawn_low", "drawn_high"), interval or (None, None), strict=True))
    against |= (
        dict.fromkeys(("low", "high", "p", "users_sd", "minimum_detectable", "power"))
        if both is None
        else {
            **asdict(both),
            **_power(file, over_seeds.mean, over_seeds.sd, over_seeds.n, both.users_sd),
        }
    )
    return {**found, "against_baseline": against}


def _power(file: RollingFile, difference: float, sd: float | None, seeds: int, users_sd: float) -> Json:
    if not sd:
        return {"minimum_detectable": None, "power": None}
    return {
        "minimum_detectable": minimum_detectable(sd, seeds, file.alpha, file.power, users_sd),
        # Chance to find a true difference of the size that was observed.
        "power": power(difference, sd, seeds, file.alpha, users_sd),
    }


def drawn_seeds(draws_RS: Floats) -> Floats:
    """Mean difference [R] where both are drawn with replacement: the users of each row, and the seeds."""
    draws, seeds = draws_RS.shape
    picked_RS = np.random.default_rng(DRAWS_SEED).integers(0, seeds, (draws, seeds))
    found_R: Floats = np.take_along_axis(draws_RS, picked_RS, axis=1).mean(axis=1)
    return found_R


def _correct(entries: Mapping[str, Mapping[str, Json]], tasks: Sequence[str]) -> None:
    """Holm's correction over tasks and methods, as p_holm."""
    tested = {
        f"{task}/{method}": entry["against_baseline"]
        for task in tasks
        for method, entry in entries[task].items()
        if "against_baseline" in entry
    }
    corrected = holm({name: found["p"] for name, found in tested.items() if found["p"] is not None})
    for name, found in tested.items():
        found["p_holm"] = corrected.get(name)


def _ensembles(file: RollingFile, metric: str, tasks: Sequence[TaskTruth], answers: Answers, num_users: int) -> Json:
    """By task and MEAN, by method: the value of the mean answer, and its difference from the baseline's over users."""
    replicates = _replicates(file, metric, tasks, answers, num_users)
    found: Json = {}
    for name in (*(task.name for task in tasks), MEAN):
        used = [task for task in tasks if name in (task.name, MEAN)]
        of_methods: dict[str, float] = {}
        for method, by_seed in answers.items():
            measured = [_value(metric, task, by_seed[ENSEMBLE][task.name]) for task in used]
            of_methods[method] = statistics.fmean(value for value in measured if value is not None)
        found[name] = {}
        for method, value in of_methods.items():
            draws_RS = replicates.differences_RS.get(name, {}).get(method)
            interval = None if draws_RS is None else percentile_interval(draws_RS[:, 0])
            low, high = interval or (None, None)
            found[name][method] = {
                "value": value,
                "difference": None if method == file.baseline else value - of_methods[file.baseline],
                "low": low,
                "high": high,
            }
    return found


def direction(metric: str) -> int:
    """1 where a larger value is better, else -1."""
    return 1 if METRICS[metric].better == "higher" else -1
