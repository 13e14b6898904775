"""The search of an experiment: trials on the validation split -> what is chosen for every network.

    python -m training compare EXPERIMENT [--search] [--trials N] [--storage URL]

A trial trains one point of a network's space with every search seed. Its value is the mean over seeds of the verdict's
metric, averaged over the verdict's tasks, on the validation split. A space with no more points than trials is tried
point by point, any other by a seeded tree-structured Parzen estimator, the same for all networks. The choice does not
depend on the number of processes, nor on being killed and started again.

Machines that share a storage share the trials: each takes new ones until all are taken, then also runs those that the
others have not ended, so that no machine waits for one that is gone. A trial is ended once, by the first, and
every machine reads the same values and the same choice. Runs are kept in OUTPUT/search, the outcome in search.json.

Shapes: B rows, O outputs.
"""

import contextlib
import json
import statistics
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from training.compare.experiment import Experiment, check_sizes
from training.compare.measures import METRICS
from training.compare.plans import Plan
from training.compare.predictions import prediction_file, read_predictions, truth_of
from training.compare.progress import ShownJobs
from training.compare.space import Point, decoded, distributions, encoded
from training.compare.storage import opened, own_storage, shared_storage
from training.compare.workers import Job, is_done, refuse_changed
from training.config import TrainingConfig
from training.run.run import Run, read_json, write_json

FOUND = "search.json"
# Trials drawn at random before the estimator has something to go by.
STARTUP = 5

Json = dict[str, Any]


def search(experiment: Experiment, plans: Sequence[Plan], *, storage: str | None, train: bool) -> Json:
    """Run what is left of a search. [dataset][network] -> its trials and the number of the `chosen` one, None where
    all have failed. `train` False reads a search that has ended. Raises ValueError for what the user can fix."""
    file = experiment.output / FOUND
    found: Json = read_json(file) if file.exists() else {}
    remedy = "choose another output or delete its search.json, search.db and search folder"
    for plan in plans:
        if plan.network in found.get(plan.dataset, {}):
            plan.refuse_other(found[plan.dataset][plan.network]["record"], remedy)
    left = [plan for plan in plans if plan.network not in found.get(plan.dataset, {})]
    if left and not train:
        raise ValueError(f"{left[0]}: has not ended, so nothing is chosen; run compare without --report")
    if left:
        url = own_storage(experiment.output) if storage is None else shared_storage(storage)
        with opened(url) as database:
            remedy += ", or (in a shared storage) another name for the experiment"
            studies = [Study(experiment, plan, database, remedy, is_shared=storage is not None) for plan in left]
            _run(experiment, studies)
            for study in studies:
                found.setdefault(study.plan.dataset, {})[study.plan.network] = study.results()
        write_json(file, found)
    return {
        dataset: {plan.network: found[dataset][plan.network] for plan in plans if plan.dataset == dataset}
        for dataset in dict.fromkeys(plan.dataset for plan in plans)
    }


def chosen_point(found: Mapping[str, Any]) -> Point:
    """The parameters that a network's search chose."""
    return dict(found["trials"][found["chosen"]]["parameters"])


def _run(experiment: Experiment, studies: Sequence["Study"]) -> None:
    total = sum(study.plan.trials * len(study.plan.seeds) for study in studies)
    with ShownJobs("search", total, experiment.processes) as shown:
        while claims := _claim(studies, experiment.processes):
            jobs = [job for claim in claims for job in claim.jobs]
            done = sum(len(claim.plan.seeds) for claim in claims) - len(jobs)
            left = sum(study.num_left() * len(study.plan.seeds) for study in studies) - done
            # Other machines end trials meanwhile.
            faults = {outcome.cell: outcome for outcome in shown.run(jobs, max(left, len(jobs)))}
            stopped = [outcome for outcome in faults.values() if not outcome.has_diverged]
            for claim in claims:
                failed = [faults[job.cell] for job in claim.jobs if job.cell in faults]
                if failed and all(outcome.has_diverged for outcome in failed):
                    claim.study.fail_trial(claim.trial, claim.point, failed[0].fault or "")
                elif not failed:
                    claim.study.end_trial(claim.trial, claim.point)
            if stopped:
                # The disk, the memory or the data are at fault, not the point: it must not count against it.
                raise ValueError(f"{stopped[0].cell}: {stopped[0].fault}; run compare again to go on with the search")


@dataclass(frozen=True, slots=True)
class Claim:
    """A trial that this machine runs now, and the jobs left of it."""

    study: "Study"
    trial: int
    point: Point
    jobs: tuple[Job, ...]

    @property
    def plan(self) -> Plan:
        """The plan that the trial is part of."""
        return self.study.plan


def _claim(studies: Sequence["Study"], processes: int) -> list[Claim]:
    """The trials of a round. They are those that this machine has begun, and new ones of every network in turn, one
    each and more while processes would be idle. Where there are none of either, they are those of other machines."""
    claims = [claim for study in studies for claim in study.running_claims(own=True)]
    while not claims or sum(len(claim.jobs) for claim in claims) < processes:
        new = [claim for study in studies if (claim := study.take_trial({c.trial for c in claims if c.study is study}))]
        if not new:
            break
        claims += new
    return claims or [claim for study in studies for claim in study.running_claims(own=False)]


class Study:
    """The trials of a plan in the storage."""

    def __init__(
        self, experiment: Experiment, plan: Plan, storage: RDBStorage, remedy: str, *, is_shared: bool
    ) -> None:
        self.plan = plan
        self._is_shared = is_shared
        self._experiment = experiment
        self._storage = storage
        metric = METRICS[experiment.verdict.metric]
        self._study = optuna.create_study(
            storage=storage,
            sampler=Sampler(plan),
            study_name=f"{experiment.name}/{plan.dataset}/{plan.network}",
            direction="maximize" if metric.better == "higher" else "minimize",
            load_if_exists=True,
        )
        kept = self._study.user_attrs.get("record")
        if kept is None:
            self._study.set_user_attr("record", json.dumps(plan.record))
        else:
            plan.refuse_other(json.loads(kept), remedy)
        self._distributions = distributions(plan.space)
        self._folder = experiment.output / str(plan)

    def _trials(self) -> list[FrozenTrial]:
        """The trials that count: two machines that take the last one at once make one too many."""
        return [trial for trial in self._study.get_trials(deepcopy=False) if trial.number < self.plan.trials]

    def num_left(self) -> int:
        """Trials that have not ended."""
        return self.plan.trials - sum(trial.state.is_finished() for trial in self._trials())

    def running_claims(self, *, own: bool) -> list[Claim]:
        """Trials that have not ended, of this machine or of others."""
        running = [trial for trial in self._trials() if not trial.state.is_finished()]
        claims = [self._claim(trial) for trial in running if self._is_own(trial.number) == own]
        return [claim for claim in claims if claim is not None]

    def take_trial(self, of_round: set[int]) -> Claim | None:
        """A new trial, or None: all are taken, or the estimator has to wait for those `of_round`."""
        number = len(self._study.get_trials(deepcopy=False))
        while number < self.plan.trials and (not of_round or number < max(STARTUP, len(self.plan.points))):
            number = self._study.ask(fixed_distributions=self._distributions).number
            if number >= self.plan.trials:
                self._study.tell(number, state=TrialState.FAIL)
                return None
            (self._folder / f"trial-{number}").mkdir(parents=True, exist_ok=True)
            claim = self._claim(self._study.get_trials(deepcopy=False)[number])
            if claim is not None:
                return claim
            number += 1
        return None

    def _is_own(self, number: int) -> bool:
        return not self._is_shared or (self._folder / f"trial-{number}").exists()

    def _claim(self, trial: FrozenTrial) -> Claim | None:
        """The trial's jobs. None, and the trial has failed, where its point fits no network."""
        parameters = dict(trial.params)
        for name, distribution in self._distributions.items():
            # Killed while drawing: the same is drawn again.
            if name not in parameters:
                drawn = self._study.sampler.sample_independent(self._study, trial, name, distribution)
                parameters[name] = drawn
        point = decoded(self.plan.space, parameters)
        try:
            configs = self._configs(trial.number, point)
        except ValueError as error:
            self.fail_trial(trial.number, point, str(error))
            return None
        cells = {self.plan.cell(seed, trial.number): config for seed, config in configs.items()}
        refuse_changed(cells)
        jobs = [Job(cell, config, "validation") for cell, config in cells.items() if not is_done(config, "validation")]
        return Claim(self, trial.number, point, tuple(jobs))

    def _configs(self, number: int, point: Point) -> dict[int, TrainingConfig]:
        configs = {seed: self._experiment.config(self.plan.cell(seed, number), point) for seed in self.plan.seeds}
        first = configs[self.plan.seeds[0]]
        check_sizes(first, first.feed_schema())
        return configs

    def end_trial(self, number: int, point: Point) -> None:
        """End a trial whose runs are all trained."""
        values = {str(seed): _value(self._experiment, config) for seed, config in self._configs(number, point).items()}
        self._record_end(number, {"parameters": point, "values": values}, statistics.fmean(values.values()))

    def fail_trial(self, number: int, point: Point, fault: str) -> None:
        """End a trial that diverged, or whose point fits no network."""
        self._record_end(number, {"parameters": point, "fault": fault}, None)

    def _record_end(self, number: int, words: Json, value: float | None) -> None:
        study = self._storage.get_study_id_from_name(self._study.study_name)
        trial = self._storage.get_trial_id_from_study_id_trial_number(study, number)
        # Another machine may have been first: its values stand.
        with contextlib.suppress(UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(trial, "found", json.dumps(words))
            state = TrialState.FAIL if value is None else TrialState.COMPLETE
            self._study.tell(number, value, state=state, skip_if_finished=True)

    def results(self) -> Json:
        """The ended search as it is kept: record, trials, and the number of the chosen one (of equals the first)."""
        trials: list[Json] = []
        for trial in self._trials():
            value = trial.value if trial.state is TrialState.COMPLETE else None
            trials.append({"number": trial.number, "value": value, **json.loads(trial.user_attrs["found"])})
        sign = -1 if METRICS[self._experiment.verdict.metric].better == "higher" else 1
        ended = [trial for trial in trials if trial["value"] is not None]
        best = min(ended, key=lambda trial: (sign * trial["value"], trial["number"]), default=None)
        return {"record": self.plan.record, "trials": trials, "chosen": None if best is None else best["number"]}


def _value(experiment: Experiment, config: TrainingConfig) -> float:
    """The verdict's metric of a run on the validation split, in the mean over the verdict's tasks."""
    run = Run.open(config.output)
    truth = truth_of(run, "validation")
    outputs_BO = read_predictions(prediction_file(run.path, "validation"), truth)
    names = experiment.verdict_tasks(run.schema)
    metric = experiment.verdict.metric
    measured = [task.measure(metric, outputs_BO)[0] for task in truth.tasks if task.name in names]
    values = [value for value in measured if value is not None]
    if not values:
        raise ValueError(
            f"experiment {experiment.name}: {metric} is undefined on the validation split "
            f"({METRICS[metric].undefined}), so a search cannot choose by it; choose another verdict.metric"
        )
    return statistics.fmean(values)


class Sampler(BaseSampler):
    """A plan's points, then the estimator. What is drawn depends on the trial's number, the key and the ended trials
    alone, so that networks with the same space begin with the same points."""

    def __init__(self, plan: Plan) -> None:
        self._points = [encoded(plan.space, point) for point in plan.points]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """None: keys are drawn one by one."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value of a key in a trial."""
        if trial.number < len(self._points):
            return self._points[trial.number][param_name]
        seed = zlib.crc32(f"{trial.number}/{param_name}".encode())
        estimator = TPESampler(seed=seed, n_startup_trials=STARTUP)
        return estimator.sample_independent(study, trial, param_name, param_distribution)
