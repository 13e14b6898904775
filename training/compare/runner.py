"""The main path of a comparison: experiment file -> trained cells -> predictions -> results and report.

    python -m training compare configs/experiments/census_table5.yaml [--processes N] [--seeds N] [--report]

Cells are trained once: a comparison that was killed goes on where it stood, and one with more seeds trains the new ones
alone. Epochs are chosen on the validation split; the test split is answered when every cell is trained, and read for
the final table alone.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from model.strict_yaml import read_yaml
from training.compare.analysis import analyse
from training.compare.experiment import Cell, Experiment
from training.compare.predictions import prediction_file
from training.compare.report import print_tables, write_report
from training.compare.tree_config import kept_config
from training.compare.workers import Job, run_jobs
from training.config import SplitName, TrainingConfig
from training.run import CONFIG, SUMMARY, locked

log = logging.getLogger(__name__)


def compare(experiment: Experiment, *, report_only: bool = False) -> Path:
    """Runs what is left of an experiment and reports it; returns the report's path.

    `report_only` trains nothing and reports the finished cells. Raises ValueError for what the user can mend."""
    configs = experiment.configs()
    with locked(experiment.output):
        _refuse_changed(configs)
        failures: dict[Cell, str] = {}
        if not report_only:
            failures |= _run("training", _unfinished(configs, "validation"), len(configs), experiment.processes)
        trained = {cell: config for cell, config in configs.items() if _is_done(config, "validation")}
        if not trained:
            first = f" ({next(iter(failures.values()))})" if failures else ""
            raise ValueError(f"{experiment.output}: no cell is trained, so there is nothing to report{first}")
        failures |= _run("test split", _unfinished(trained, "test"), len(trained), experiment.processes)
        done = {cell: config for cell, config in trained.items() if _is_done(config, "test")}
        results = analyse(experiment, done, {str(cell): fault for cell, fault in failures.items()})
    path = write_report(experiment.output, results)
    print_tables(results)
    return path


def _refuse_changed(configs: Mapping[Cell, TrainingConfig]) -> None:
    for cell, config in configs.items():
        if (config.output / CONFIG).exists() and kept_config(config.output) != config:
            raise ValueError(
                f"{config.output}: holds a run from which the experiment's {cell} differs; "
                "choose another output or delete the folder"
            )


def _is_done(config: TrainingConfig, split: SplitName) -> bool:
    return (config.output / SUMMARY).exists() and prediction_file(config.output, split).exists()


def _unfinished(configs: Mapping[Cell, TrainingConfig], split: SplitName) -> list[Job]:
    return [Job(cell, config, split) for cell, config in configs.items() if not _is_done(config, split)]


def _run(what: str, jobs: Sequence[Job], total: int, processes: int) -> dict[Cell, str]:
    """Runs jobs with a bar (lines where there is no terminal); returns the faults of those that failed."""
    failures: dict[Cell, str] = {}
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    left = TextColumn("{task.fields[left]}")
    started = time.monotonic()
    with Progress(*columns, left, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, completed=total - len(jobs), left="")
        for count, outcome in enumerate(run_jobs(jobs, processes), start=1):
            if outcome.fault is not None:
                failures[outcome.cell] = outcome.fault
            remaining = (time.monotonic() - started) / count * (len(jobs) - count)
            left_words = f"about {_duration(remaining)} left" if count < len(jobs) else "done"
            bar.update(task, advance=1, left=left_words)
            ended = f"failed: {outcome.fault}" if outcome.fault else f"{outcome.seconds:.0f} s"
            place = f"{what} {total - len(jobs) + count}/{total}"
            console.print(f"{place}  {outcome.cell}  {ended}  ({left_words})", markup=False)
    return failures


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def load(path: Path, changes: dict[str, Any]) -> Experiment:
    """Reads an experiment file with top-level keys replaced. Raises ValueError naming the file and the key."""
    content = read_yaml(path)
    return Experiment.from_mapping(content | changes if isinstance(content, dict) else content, str(path))
