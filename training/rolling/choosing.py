"""Trials on rolling days: of every method the same number, and the best mean of the first metric is chosen.

In: a comparison. Out: trials.json in its output, whole after every trial. A trial trains one point of a method's space
on every fold with every search seed. It is worth the mean over folds, tasks and seeds of the first metric. The other
metrics are kept beside it. Trials go round the methods, so a search that was stopped has tried all of them alike.

The next point depends on the ended trials alone: a search that was killed goes on as if it had not been, and more
trials extend it. Runs of an unended trial are kept, and not trained again.

Shapes: B rows, O outputs.
"""

import logging
import resource
import statistics
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from training.compare.experiment import Cell, check_sizes
from training.compare.measures import METRICS
from training.compare.plans import WHERE, Plan
from training.compare.predictions import prediction_file, read_predictions, truth_of
from training.compare.progress import ShownJobs
from training.compare.search import Sampler
from training.compare.space import Choices, Point, Span, around, decoded, distributions, encoded, look_up, probes
from training.compare.workers import Job, is_done, refuse_changed
from training.config import TrainingConfig
from training.files import LEFT_BY_ANY, entries, is_json_with, refuse_foreign, refuse_within
from training.rolling.checkout import commit_of_checkout
from training.rolling.rolling_file import SCHEMAS, Method, RollingFile, trial_cell
from training.run.run import Run, locked, read_json, write_json

log = logging.getLogger(__name__)

TRIALS, SEARCH = "trials.json", "search"
REMEDY = "choose another output, or delete its trials.json and search folder"

Json = dict[str, Any]
# metric -> day -> task -> seed -> value, all as text.
Values = dict[str, dict[str, dict[str, dict[str, float]]]]


class Trials:
    """The ended trials of a comparison, by method, in its output."""

    def __init__(self, file: RollingFile) -> None:
        """Read what is there. Raises ValueError for trials of another comparison."""
        self.file = file
        self.path = file.output / TRIALS
        content = read_json(self.path) if self.path.exists() else {"methods": {}}
        self.plans = {method.name: plan_of(file, method) for method in file.methods}
        self._methods: dict[str, Json] = content["methods"]
        for name, plan in self.plans.items():
            if name in self._methods:
                plan.refuse_other(self._methods[name]["record"], REMEDY)

    def of(self, method: str) -> list[Json]:
        """Ended trials of a method, in order."""
        return list(self._methods[method]["trials"]) if method in self._methods else []

    def add(self, method: str, trial: Json) -> None:
        """Keep a trial that has ended."""
        kept = self._methods.setdefault(method, {"record": self.plans[method].record, "trials": []})
        kept["trials"].append(trial)
        write_json(self.path, {"methods": self._methods})

    def next_point(self, method: str) -> Point:
        """Next trial of a method."""
        plan, ended = self.plans[method], self.of(method)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=Sampler(plan), direction="minimize")
        space = distributions(plan.space)
        for trial in ended:
            value = loss_of(self.file, trial)
            study.add_trial(
                create_trial(
                    params=encoded(plan.space, trial["point"]),
                    distributions=space,
                    value=value,
                    state=TrialState.FAIL if value is None else TrialState.COMPLETE,
                )
            )
        return decoded(plan.space, study.ask(fixed_distributions=space).params)

    def best(self, method: str) -> Json | None:
        """The best trial of a method, of equals the first. None where none has a value."""
        found = [
            (value, trial["number"], trial)
            for trial in self.of(method)
            if (value := loss_of(self.file, trial)) is not None
        ]
        return min(found, key=lambda entry: entry[:2])[2] if found else None

    def refuse_unended(self) -> None:
        """Raise ValueError naming a method that has not had all its trials."""
        for name in self.file.method_names:
            if (ended := len(self.of(name))) < self.file.search.trials:
                raise ValueError(
                    f"{self.path}: {name} has ended {ended} of {self.file.search.trials} trials; run "
                    "`python -m training rolling choose` until all have ended"
                )


def loss_of(file: RollingFile, trial: Mapping[str, Any]) -> float | None:
    """The mean of the metric that chooses, its sign such that lower is better. None where the trial failed."""
    value = mean_of(file, trial, file.metrics[0])
    return None if value is None else value if METRICS[file.metrics[0]].better == "lower" else -value


def mean_of(file: RollingFile, trial: Mapping[str, Any], metric: str, days: Sequence[date] = ()) -> float | None:
    """Mean of a trial's metric over folds (`days`, by default all), the comparison's tasks and the search's seeds."""
    if "fault" in trial:
        return None
    of_days = trial["values"][metric]
    wanted = [day.isoformat() for day in days or file.days.folds]
    return statistics.fmean(value for day in wanted for task in file.tasks for value in of_days[day][task].values())


def plan_of(file: RollingFile, method: Method) -> Plan:
    """Dependencies of a method's trials. Raises ValueError for a space that does not fit it."""
    day, seed = file.days.folds[0], file.search_seeds[0]
    base = file.trial_config(method, day, seed, 0, {})
    schema = base.feed_schema()
    written = method.lightgbm.model_dump(mode="json") if method.lightgbm is not None else base.dump()
    try:
        space = around(method.space_in(file.search), written)
        for key, dimension in space.items():
            for value in probes(dimension):
                check_sizes(file.trial_config(method, day, seed, 0, {key: value}), schema)
    except ValueError as error:
        raise ValueError(f"comparison {file.name}, space of method {method.name}: {error}") from None
    training = {key: value for key, value in base.dump().items() if key not in WHERE}
    training["data"] = {key: value for key, value in base.dump()["data"].items() if key not in ("path", "split")}
    record = {
        "seeds": list(file.search_seeds),
        "space": {key: x.model_dump() if isinstance(x, Span) else list(x) for key, x in space.items()},
        "metrics": list(file.metrics),
        "tasks": list(file.tasks),
        "days": file.days.model_dump(mode="json"),
        "schema": schema.model_dump(mode="json", exclude_none=True),
        "training": training,
    }
    own = _written_point(file, method, base, space, written)
    return Plan(
        file.name, method.name, space, () if own is None else (own,), file.search.trials, file.search_seeds, record
    )


def _written_point(
    file: RollingFile, method: Method, base: TrainingConfig, space: Mapping[str, Span | Choices], written: Json
) -> Point | None:
    """What the files say, so that a search never does without it. None where the space lacks it."""
    point: Point = {}
    for key, dimension in space.items():
        if isinstance(dimension, Span):
            value = look_up(written, key)
            same: Sequence[Any] = [value] if dimension.contains(value) else []
        else:
            day, seed = file.days.folds[0], file.search_seeds[0]
            same = [one for one in dimension if file.trial_config(method, day, seed, 0, {key: one}) == base]
        if not same:
            log.warning(
                "method %s: its own %s is not in the space, so no trial has what the files say", method.name, key
            )
            return None
        point[key] = same[0]
    return point


def choose(file: RollingFile) -> Trials:
    """Run the trials that are left. Raises ValueError for what the user can fix, and for a fault that no point has."""
    _refuse_no_comparison(file)
    with locked(file.output):
        file.check()
        trials = Trials(file)
        runs = len(file.days.folds) * file.search.seeds
        left = [
            (number, method)
            for number in range(file.search.trials)
            for method in file.methods
            if number >= len(trials.of(method.name))
        ]
        total = len(file.methods) * file.search.trials * runs
        with ShownJobs("trials", total, file.processes) as shown:
            for place, (number, method) in enumerate(left):
                _run_trial(trials, method, number, shown, (len(left) - place) * runs)
    return trials


def _run_trial(trials: Trials, method: Method, number: int, shown: ShownJobs, left: int) -> None:
    file, before = trials.file, _cpu_seconds()
    point = trials.next_point(method.name)
    words: Json = {"number": number, "point": point, "commit": commit_of_checkout()}
    try:
        configs: dict[Cell, TrainingConfig] = {
            trial_cell(method, day, seed, number): file.trial_config(method, day, seed, number, point)
            for day in file.days.folds
            for seed in file.search_seeds
        }
        first = next(iter(configs.values()))
        check_sizes(first, first.feed_schema())
    except ValueError as error:
        trials.add(method.name, {**words, "fault": str(error)})
        return
    refuse_changed(configs)
    jobs = [Job(cell, config, "validation") for cell, config in configs.items() if not is_done(config, "validation")]
    failed = shown.run(jobs, left - (len(configs) - len(jobs)))
    for outcome in failed:
        if not outcome.has_diverged:
            # The disk, the memory or the data are at fault, not the point: it must not count against it.
            raise ValueError(f"{outcome.cell}: {outcome.fault}; run choose again to go on")
    ended = {"fault": failed[0].fault} if failed else {"values": _values(file, method, number, point)}
    trials.add(method.name, {**words, **ended, "cpu_seconds": round(_cpu_seconds() - before, 1)})


def _values(file: RollingFile, method: Method, number: int, point: Point) -> Values:
    """The metrics of a trial whose runs are trained. Raises ValueError where a metric is undefined on a fold."""
    found: Values = {metric: {} for metric in file.metrics}
    for day in file.days.folds:
        for seed in file.search_seeds:
            config = file.trial_config(method, day, seed, number, point)
            run = Run.open(config.output)
            truth = truth_of(run, "validation")
            outputs_BO = read_predictions(prediction_file(run.path, "validation"), truth)
            for task in truth.tasks:
                for metric in file.metrics if task.name in file.tasks else ():
                    value, reason = task.measure(metric, outputs_BO)
                    if value is None:
                        raise ValueError(f"{day}: {metric} of {task.name} is undefined ({reason}); leave the task out")
                    of_day = found[metric].setdefault(day.isoformat(), {})
                    of_day.setdefault(task.name, {})[str(seed)] = value
    return found


def _refuse_no_comparison(file: RollingFile) -> None:
    for path in file.data_paths():
        refuse_within(file.output, path)

    def is_own() -> bool:
        # Of a search that was killed before its first trial ended, or of `show` before it.
        schemas = {f"{name}.yaml" for name in file.method_names}
        is_begun = {*entries(file.output)} <= {".lock", SCHEMAS, SEARCH} and {
            *entries(file.output / SCHEMAS)
        } <= schemas
        return is_begun or is_json_with(file.output / TRIALS, "methods")

    refuse_foreign(file.output, "comparison's folder", is_own=is_own, left=LEFT_BY_ANY)


def _cpu_seconds() -> float:
    """CPU time of this process and of those that it has ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def trials_file(file: RollingFile) -> Path:
    """Where the trials are kept."""
    return file.output / TRIALS
