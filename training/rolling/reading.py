"""The one reading of the test day: what a frozen file says is trained, answers the day, and is measured.

In: a committed frozen file, and the committed list of readings. Out: reading/ in the comparison's output, with
results.json and the report. Everything is trained before the day is read. The list has the reading before the first
answer, so a reading that was killed goes on as the same one.
"""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training.compare.document import write_document
from training.compare.experiment import Cell
from training.compare.progress import ShownJobs
from training.compare.workers import Job, is_done, refuse_changed
from training.config import SplitName, TrainingConfig
from training.rolling.checkout import commit_of_checkout, refuse_uncommitted, refuse_untracked
from training.rolling.choice_report import size_of
from training.rolling.figures import figures_of_day
from training.rolling.frozen import Frozen, load_frozen, sha256_of_frozen
from training.rolling.reading_report import reading_blocks
from training.rolling.readings import begin_reading, end_reading, read_list
from training.rolling.rolling_file import RollingFile, final_cell
from training.run.run import Run, library_versions, locked, write_json

FOLDER = "reading"
RESULTS = "results.json"

Json = dict[str, Any]


def read(path: Path, again: str | None, processes: int | None = None) -> Path:
    """Train what is left of a frozen file, read its test day, and report. Returns the report's path. Raises ValueError
    for what the user can fix, and for a second reading without words."""
    frozen, file = load_frozen(path)
    if processes is not None:
        file = file.model_copy(update={"processes": processes})
    refuse_uncommitted(path)
    refuse_untracked(file.readings)
    with locked(file.output):
        cells = {
            (name, seed): final_cell(file, file.method(name), seed) for name in frozen.methods for seed in file.seeds
        }
        configs = {
            cells[name, seed]: file.final_config(file.method(name), seed, frozen.methods[name].point)
            for name, seed in cells
        }
        refuse_changed(configs)
        _run(file, configs, "training", "validation")
        begin_reading(
            file.readings, file.days.test, file.name, sha256_of_frozen(path), commit_of_checkout(file.readings), again
        )
        _run(file, configs, "test day", "test")
        results = _results(file, frozen, path, {key: configs[cell] for key, cell in cells.items()})
        folder = file.output / FOLDER
        folder.mkdir(exist_ok=True)
        write_json(folder / RESULTS, results)
        page = write_document(folder, file.name, list(reading_blocks(results)))
        end_reading(file.readings, file.days.test, file.name)
    return page


def _run(file: RollingFile, configs: Mapping[Cell, TrainingConfig], what: str, split: SplitName) -> None:
    jobs = [Job(cell, config, split) for cell, config in configs.items() if not is_done(config, split)]
    with ShownJobs(what, len(configs), file.processes) as shown:
        failed = shown.run(jobs)
    if failed:
        raise ValueError(f"{failed[0].cell}: {failed[0].fault}; run read again to go on")


def _results(file: RollingFile, frozen: Frozen, path: Path, configs: Mapping[tuple[str, int], TrainingConfig]) -> Json:
    earlier = [one for one in read_list(file.readings) if one.day == file.days.test and one.ended]
    runs: dict[str, list[Run]] = {}
    for (name, _), config in configs.items():
        runs.setdefault(name, []).append(Run.open(config.output))
    return {
        "comparison": json.loads(file.model_dump_json(by_alias=True, exclude={"output", "processes"})),
        "frozen_file": str(path),
        "frozen": frozen.model_dump(mode="json"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit_of_checkout(file.readings),
        "cores": len(os.sched_getaffinity(0)),
        "libraries": library_versions(),
        "earlier_readings": [one.model_dump(mode="json", exclude_none=True) for one in earlier],
        "sizes": {name: size_of(of_method) for name, of_method in runs.items()},
        **figures_of_day(file, configs),
    }
