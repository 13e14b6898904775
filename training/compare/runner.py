"""The main path of a comparison: experiment file -> search -> trained cells -> predictions -> results and report.

    python -m training compare configs/experiments/census_table5.yaml [--processes N] [--seeds N] [--search] [--report]

Cells are trained once: a comparison that was killed goes on where it stood, and one with more seeds trains the new ones
alone. Epochs are chosen on the validation split. The test split is answered when every cell is trained, and read for
the final table alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.strict_yaml import read_yaml
from training.compare.analysis import analyse
from training.compare.experiment import Cell, Experiment
from training.compare.plans import plans
from training.compare.progress import ShownJobs
from training.compare.report import RESULTS, print_tables, write_report
from training.compare.search import chosen_point, search
from training.compare.space import LEARNING_RATES
from training.compare.workers import Job, is_done, refuse_changed
from training.config import SplitName, TrainingConfig
from training.data.moving.windows import resolved
from training.files import LEFT_BY_ANY, is_json_with, refuse_foreign, refuse_within
from training.run.run import locked, read_json, write_json
from training.split_config import MovingWindows, ResolvedWindows

# Windows of days by dataset, as the first cells had them (training/data/moving/windows.py).
WINDOWS = "windows.json"


def compare(experiment: Experiment, *, report_only: bool = False, storage: str | None = None) -> Path:
    """Run what is left of an experiment, its search first, and report it. Returns the report's path.

    `report_only` trains nothing and reports the finished cells. `storage` is the URL of a database for the search's
    trials. Raises ValueError for what the user can fix."""
    configs = experiment.configs()
    planned = plans(experiment)
    _refuse_no_experiment(experiment, configs.values())
    with locked(experiment.output):
        experiment = experiment.with_windows(_windows_of_datasets(experiment, configs))
        configs = experiment.configs()
        found = search(experiment, planned, storage=storage, train=not report_only)
        choices = {plan.key: found[plan.dataset][plan.network] for plan in planned}
        failures = {
            cell: f"search: all trials failed ({choices[key]['trials'][0]['fault']})"
            for cell in experiment.cells()
            if (key := (cell.dataset, cell.network)) in choices and choices[key]["chosen"] is None
        }
        points = {key: chosen_point(of_plan) for key, of_plan in choices.items() if of_plan["chosen"] is not None}
        if points:
            configs = experiment.configs(points)
        configs = {cell: config for cell, config in configs.items() if cell not in failures}
        refuse_changed(configs)
        if not report_only:
            failures |= _run("training", _unfinished(configs, "validation"), len(configs), experiment.processes)
        trained = {cell: config for cell, config in configs.items() if is_done(config, "validation")}
        if not trained:
            first = f" ({next(iter(failures.values()))})" if failures else ""
            raise ValueError(f"{experiment.output}: no cell is trained, so there is nothing to report{first}")
        failures |= _run("test split", _unfinished(trained, "test"), len(trained), experiment.processes)
        done = {cell: config for cell, config in trained.items() if is_done(config, "test")}
        results = analyse(experiment, done, {str(cell): fault for cell, fault in failures.items()})
        for name, of_dataset in results["datasets"].items():
            of_networks = found.get(name, {}).items()
            of_dataset["search"] = {name: {key: of[key] for key in ("trials", "chosen")} for name, of in of_networks}
    path = write_report(experiment.output, results)
    print_tables(results)
    return path


def _windows_of_datasets(experiment: Experiment, configs: Mapping[Cell, TrainingConfig]) -> dict[str, ResolvedWindows]:
    """By dataset its windows of days: those that the experiment began with, else those of the data of now."""
    kept = experiment.output / WINDOWS
    before = read_json(kept) if kept.exists() else {}
    windows: dict[str, ResolvedWindows] = {}
    for cell, config in configs.items():
        if cell.dataset in windows or not isinstance(config.data.split, MovingWindows):
            continue
        if cell.dataset in before:
            found = ResolvedWindows.from_mapping(before[cell.dataset], str(kept))
            if found.windows == config.data.split:
                windows[cell.dataset] = found
                continue
        now = resolved(config.data).bounds
        assert isinstance(now, ResolvedWindows), "a split of windows is resolved to windows"
        windows[cell.dataset] = now
    if windows:
        write_json(kept, {name: found.model_dump(mode="json") for name, found in windows.items()})
    return windows


def _refuse_no_experiment(experiment: Experiment, configs: Iterable[TrainingConfig]) -> None:
    """Raise ValueError for an output folder that is the data's, or is neither empty nor an experiment."""
    folder = experiment.output
    for data in {str(config.data.path) for config in configs}:
        refuse_within(folder, data)

    def is_own() -> bool:
        # A search ends before the first cell of the table begins.
        cells = ("*/*/seed-*/.lock", "search/*/*/trial-*")
        return any(any(folder.glob(pattern)) for pattern in cells) or is_json_with(folder / RESULTS, "experiment")

    refuse_foreign(folder, "experiment's folder", is_own=is_own, left=(*LEFT_BY_ANY, "search.db*", WINDOWS))


def _unfinished(configs: Mapping[Cell, TrainingConfig], split: SplitName) -> list[Job]:
    return [Job(cell, config, split) for cell, config in configs.items() if not is_done(config, split)]


def _run(what: str, jobs: Sequence[Job], total: int, processes: int) -> dict[Cell, str]:
    """Runs jobs. Returns the faults of those that failed."""
    with ShownJobs(what, total, processes) as shown:
        return {outcome.cell: outcome.fault or "" for outcome in shown.run(jobs)}


def load(path: Path, changes: dict[str, Any], *, tune: bool = False, trials: int | None = None) -> Experiment:
    """Read an experiment file with top-level keys replaced. `tune` tunes the learning rates where the file has no
    search. `trials` replaces the search's. Raises ValueError naming the file and the key."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        return Experiment.from_mapping(content, str(path))
    content |= changes
    if tune and content.get("search") is None:
        content["search"] = {"space": LEARNING_RATES}
    if trials is not None:
        if content.get("search") is None:
            raise ValueError(f"--trials {trials}: {path} has no search; add --search, or a search block to the file")
        if isinstance(content["search"], dict):
            content["search"] = content["search"] | {"trials": trials}
    return Experiment.from_mapping(content, str(path))
