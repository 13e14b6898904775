"""`make bench-next-day`: learning rates for a next day, on KuaiRand-Pure over several days and seeds.

FEEDRANK_DATA=<folder with kuairand_pure> python -m benchmarks.next_day

The parent is the shipped training file on the days before day d, chosen on d. Each child starts from it and trains on d
alone, its rates multiplied by a factor, is chosen on d + 1 and tested on d + 2. Beside the children stand the parent
left as it is, and a cold start on all days to d. A cell that was measured is kept in runs/bench-next-day/cells.json.
"""

import argparse
import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
from scipy import stats

from benchmarks import readings, report
from benchmarks.command import data_folder, run_benchmark
from training.config import TrainingConfig
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, read_splits
from training.evaluate.validation import predict, relative_errors, validation_objective
from training.run.run import Run, write_json
from training.train import train

log = logging.getLogger(__name__)

CONFIG = Path("configs/kuairand.yaml")
FOLDER = Path("runs/bench-next-day")
FACTORS = (1.0, 0.5, 0.25, 0.1)
PARENT, COLD = "parent, left as it is", "cold start on all days"
OBJECTIVE = "mean of tasks"
# The days that are trained on: early enough for two more, late enough for a parent of a week.
UPDATES = 5
Errors = dict[str, float]


def main() -> None:
    """Train what is not trained yet, print and write the table."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    data = data_folder("kuairand")
    days = sorted(pc.unique(_impressions(data).to_table(["date"])["date"]).to_pylist())
    updates = range(len(days) - 2 - UPDATES, len(days) - 2)
    kept = FOLDER / "cells.json"
    cells: dict[str, dict[str, Errors]] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for seed in range(options.seeds):
        for update in updates:
            name = f"{days[update]} seed {seed}"
            if name not in cells:
                cells[name] = _cell(data, days, update, seed)
                write_json(kept, cells)
                log.info("%s: %s", name, {arm: round(errors[OBJECTIVE], 4) for arm, errors in cells[name].items()})
    chosen = {name: cell for name, cell in cells.items() if int(name.rpartition(" ")[2]) < options.seeds}
    readings.note("next_day", readings.KUAIRAND_DAY)
    path = report.write(
        "next_day", "Learning rates for a next day", _body(chosen), {"cells": chosen}, "make bench-next-day"
    )
    print(path.read_text(encoding="utf-8"))


def _cell(data: Path, days: Sequence[int], update: int, seed: int) -> dict[str, Errors]:
    """By arm, the errors on the day after the next."""
    test = days[update + 2]
    parent = _trained(data, days, 0, update - 1, seed)
    arms = {PARENT: parent, COLD: _trained(data, days, 0, update, seed)}
    for factor in FACTORS:
        start = [f"init_from.path={parent.path}", f"init_from.rate_factor={factor}"]
        arms[f"{factor:g}"] = _trained(data, days, update, update, seed, start)
    return {arm: _errors(run, data, test) for arm, run in arms.items()}


def _trained(data: Path, days: Sequence[int], first: int, last: int, seed: int, changes: Sequence[str] = ()) -> Run:
    """A run on the days `first` to `last`, chosen on the day after them."""
    factor = changes[-1].rpartition("=")[2] if changes else "cold"
    output = FOLDER / f"seed-{seed}" / f"{days[first]}-{days[last]}-{factor}"
    split = {"column": "date", "train": {"min": days[first], "max": days[last]}, "validation": days[last + 1]}
    config = TrainingConfig.load(
        CONFIG,
        [
            f"data.path={_days(data, days[first], days[last + 1])}",
            f"data.split={json.dumps(split)}",
            f"seed={seed}",
            f"output={output}",
            *changes,
        ],
    )
    return train(config, show=False)


def _days(data: Path, first: int, last: int) -> Path:
    """A folder with the rows of some days alone, so that a child does not read the whole log."""
    folder = FOLDER / "data" / f"{first}-{last}"
    if not (folder / "log.parquet").exists():
        folder.mkdir(parents=True, exist_ok=True)
        chosen = (pc.field("date") >= first) & (pc.field("date") <= last)
        rows = _impressions(data).to_table(filter=chosen)
        pq.write_table(rows, folder / "partial")
        (folder / "partial").rename(folder / "log.parquet")
    return folder


def _impressions(data: Path) -> pyarrow.dataset.Dataset:
    return pyarrow.dataset.dataset(sorted(map(str, data.glob("*.parquet"))), format="parquet")


def _errors(run: Run, data: Path, day: int) -> Errors:
    """By task NE, or squared error over variance on the learned scale, of the best ranker on a day."""
    split = run.config.data.bounds.model_copy(update={"test": day})
    config = run.config.data.model_copy(update={"path": _days(data, day, day), "split": split})
    table = read_splits(config, run.schema, ("test",))["test"]
    rows = Rows.encode(run.schema, run.encoder, table, columns_from_arrow(run.schema, table), as_served=False)
    errors = relative_errors(run.schema, predict(run.best_ranker(), rows), rows)
    return {**errors, OBJECTIVE: validation_objective(run.schema, errors)}


def _body(cells: Mapping[str, Mapping[str, Errors]]) -> list[str]:
    days = sorted({name.partition(" ")[0] for name in cells})
    seeds = len({name.rpartition(" ")[2] for name in cells})
    tasks = list(next(iter(cells.values()))[PARENT])
    arms = [COLD, *(f"{factor:g}" for factor in FACTORS)]
    against_parent = [[arm, *(_change(cells, days, arm, PARENT, task) for task in tasks)] for arm in arms]
    smaller = [[arm, *(_change(cells, days, arm, "1", task) for task in tasks)] for arm in arms[2:]]
    by_day = [[day, *(f"{_mean(cells, day, arm, PARENT, OBJECTIVE):+.2f}" for arm in arms)] for day in days]
    return [
        f"AdaTT-sp of configs/kuairand.yaml (four epochs, cosine), {len(days)} days and {seeds} seeds. The parent was "
        "trained on all days before day d and chosen on d. A child starts from it with fresh optimizer states, trains "
        "on d alone with every learning rate multiplied by the factor, is chosen on d + 1 and tested on d + 2. The "
        "cold start is trained on all days to d and chosen on d + 1.",
        "",
        "Relative change of the error on d + 2, percent (NE, for play_time squared error over variance on log1p, lower "
        "is better). In brackets the 95 % t interval over days, the seeds of a day averaged. Behind it is how many of "
        f"the {len(cells)} cells of day and seed are better.",
        "",
        "## Against the parent left as it is",
        "",
        *report.table(["rate factor", *tasks], against_parent),
        "",
        "## Against factor 1",
        "",
        *report.table(["rate factor", *tasks], smaller),
        "",
        "## By day d, mean of tasks and seeds against the parent, percent",
        "",
        *report.table(["d", *arms], by_day),
    ]


def _mean(cells: Mapping[str, Mapping[str, Errors]], day: str, arm: str, reference: str, task: str) -> float:
    return statistics.fmean(
        100 * (cell[arm][task] / cell[reference][task] - 1) for name, cell in cells.items() if name.startswith(day)
    )


def _change(cells: Mapping[str, Mapping[str, Errors]], days: Sequence[str], arm: str, reference: str, task: str) -> str:
    values: list[Any] = [_mean(cells, day, arm, reference, task) for day in days]
    mean = statistics.fmean(values)
    better = sum(cell[arm][task] < cell[reference][task] for cell in cells.values())
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else float("nan")
    return f"{mean:+.2f} ({mean - half:+.2f}..{mean + half:+.2f}) {better}/{len(cells)}"


if __name__ == "__main__":
    run_benchmark(main)
