"""Ended trials -> what was chosen on rolling days, as blocks of a report.

In: the trials of a comparison. Out: tables of methods, folds, tasks and points. Differences are from the baseline's own
choice, fold by fold, with Student's interval over folds. A choice looks better on the folds that chose it than it is.
"""

import statistics
from collections.abc import Iterator
from typing import Any

from training.compare.boosted_trees import is_trees, tree_costs
from training.compare.cost import sizes
from training.compare.document import Block, Heading, Paragraph, Table
from training.compare.measures import METRICS
from training.compare.space import flat
from training.compare.statistics import spread
from training.rolling.choosing import Trials, mean_of
from training.rolling.rolling_file import RollingFile, trial_cell
from training.run.run import Run

Json = dict[str, Any]


def choice_blocks(trials: Trials) -> Iterator[Block]:
    """Blocks of the ended trials, complete or not."""
    file = trials.file
    best = {name: found for name in file.method_names if (found := trials.best(name)) is not None}
    title, days = METRICS[file.metrics[0]].title, file.days.folds
    yield Heading(1, f"Comparison {file.name}: rolling days")
    yield Paragraph(
        f"Each of {len(days)} days from {days[0]} to {days[-1]} validates what was trained on the days before it, from "
        f"{file.days.first} on. A trial is worth its mean {title} over days, the tasks {', '.join(file.tasks)} and "
        f"{len(file.search_seeds)} seeds. The best of a method's trials is chosen, and looks better on these days than "
        f"it is. No trial reads {file.days.test}."
    )
    yield _methods(trials, best)
    if not best:
        return
    base = best.get(file.baseline)
    for metric in file.metrics:
        yield Heading(2, f"{METRICS[metric].title} by day ({METRICS[metric].better} is better)")
        rows = [
            [name, *(_number(mean_of(file, trial, metric, [day])) for day in days), _against(file, trial, base, metric)]
            for name, trial in best.items()
        ]
        yield Table(["method", *(str(day) for day in days), f"from {file.baseline}, 95 % over days"], rows)
        yield Heading(2, f"{METRICS[metric].title} by task")
        yield Table(["method", *file.tasks], [[name, *_by_task(file, trial, metric)] for name, trial in best.items()])
    yield Heading(2, "Chosen points")
    yield Table(
        ["method", "chosen"], [[name, point_words(trial["point"])] for name, trial in best.items()], is_words=True
    )


def _methods(trials: Trials, best: dict[str, Json]) -> Table:
    file, rows = trials.file, []
    for name in file.method_names:
        ended = trials.of(name)
        failed = sum("fault" in trial for trial in ended)
        hours = sum(trial.get("cpu_seconds", 0.0) for trial in ended) / 3600
        found = best.get(name)
        means = [_number(None if found is None else mean_of(file, found, metric)) for metric in file.metrics]
        size = "-" if found is None else size_words(file, name, found)
        number = "-" if found is None else str(found["number"])
        words = f"{len(ended)} of {file.search.trials}" + (f", {failed} failed" if failed else "")
        rows.append([name, words, number, *means, size, f"{hours:.2f}"])
    titles = [f"mean {METRICS[metric].title}" for metric in file.metrics]
    return Table(["method", "trials ended", "chosen", *titles, "size", "CPU hours"], rows)


def size_words(file: RollingFile, name: str, trial: Json) -> str:
    """Dense parameters of a network, or leaves of boosted trees, on the last fold. A dash where its run is gone."""
    cell = trial_cell(file.method(name), file.days.folds[-1], file.search_seeds[0], trial["number"])
    folder = file.output / str(cell)
    return size_of([Run.open(folder)]) if folder.exists() else "-"


def size_of(runs: list[Run]) -> str:
    """The same of runs that differ in their seeds alone."""
    if is_trees(runs[0]):
        return f"{tree_costs(runs)['leaves']:,.0f} leaves"
    return f"{sizes(runs[0])['parameters']:,} parameters"


def _against(file: RollingFile, trial: Json, base: Json | None, metric: str) -> str:
    if base is None or trial is base:
        return "baseline" if trial is base else "-"
    differences = [
        value - other
        for day in file.days.folds
        if (value := mean_of(file, trial, metric, [day])) is not None
        and (other := mean_of(file, base, metric, [day])) is not None
    ]
    sign = 1 if METRICS[metric].better == "higher" else -1
    ahead = sum(sign * difference > 0 for difference in differences)
    found = spread(differences)
    interval = "" if found.low is None else f" ({found.low:+.5f}..{found.high:+.5f})"
    return f"{found.mean:+.5f}{interval}, ahead on {ahead} of {len(differences)}"


def _by_task(file: RollingFile, trial: Json, metric: str) -> list[str]:
    of_days = trial["values"][metric]
    return [
        f"{statistics.fmean(value for day in file.days.folds for value in of_days[day.isoformat()][task].values()):.5f}"
        for task in file.tasks
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5f}"


def point_words(point: Json) -> str:
    """A point in words."""
    values = {key.removeprefix("network.fusion."): value for key, value in flat(point).items()}
    return ", ".join(f"{key} {f'{x:.4g}' if isinstance(x, float) else x}" for key, x in values.items())
