"""Measures a run's best ranker on a split: what `python -m training evaluate RUN` prints and writes.

Metrics compare the ranker with the log: training_only features have their logged value, and nothing corrects for
sampled negatives. A quantity that is learned on a transformed scale is measured on it, and in the label's unit as the
mean that is answered (training/evaluate/label_means.py): on the validation split by maps that did not see the row's
user. Where the schema has training_only features, the same is measured once more `as_served`, with their serving value.
What counts there is the order that users will see. Labels were observed where items stood, so how large answers are
says little beside them, and is not printed. Intervals come from a bootstrap over users (`data.group_by`), or over rows
where no user column is named.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.special import expit

from model.tasks import BinaryTask, RegressionTask
from model.tasks.regression import transform_target
from training.config import SplitName
from training.data.groups import group_codes, rows_without_group
from training.data.rows import labels_of, observed_of, read_splits
from training.evaluate.label_means import NoLabelMeanError, bare_answers, cross_fitted, fit_label_mean, logits_of
from training.metrics.bootstrap import Floats
from training.metrics.metrics import evaluate_binary, evaluate_regression
from training.run.data_record import warn_of_changes
from training.run.run import Run, write_json
from training.wording import counted

SEED = 0

log = logging.getLogger(__name__)


def evaluate(run: Run, split: SplitName = "test", *, replicates: int = 500, where: str | None = None) -> dict[str, Any]:
    """Metrics of every task with intervals, also written to the run as evaluation-<split>.json.

    `where` ("tab=1") measures the rows with that value of a column alone, and leaves the run's file as it is."""
    run.summary()
    warn_of_changes(run)
    torch.set_num_threads(run.config.threads)
    has_means = any(isinstance(task, RegressionTask) and task.transform != "none" for task in run.schema.tasks)
    splits: tuple[SplitName, ...] = ("validation", split) if has_means and split != "validation" else (split,)
    tables = read_splits(run.config.data, run.schema, splits)
    picked_B = np.ones(tables[split].num_rows, bool) if where is None else _segment(tables[split], where)
    ranker = run.best_ranker()
    logged = {name: logits_of(run, ranker, table, as_served=False) for name, table in tables.items()}
    measure = _Measure(run, split, tables, logged, picked_B, replicates)
    result: dict[str, Any] = {
        "run": run.path.name,
        "split": split if where is None else f"{split}, {where}",
        "rows": int(picked_B.sum()),
        "intervals": {
            "level": 0.95,
            "over": run.config.data.group_by or "rows",
            "replicates": replicates,
            "rows_without_group": rows_without_group(
                tables[split].filter(pa.array(picked_B)), run.config.data.group_by
            ),
        },
        "tasks": measure.all_tasks(logged[split], as_served=False),
    }
    if any(feature.side == "training_only" for feature in run.schema.features):
        served_BO = logits_of(run, ranker, tables[split], as_served=True)
        result["tasks_as_served"] = measure.all_tasks(served_BO, as_served=True)
    if where is None:
        write_json(run.path / f"evaluation-{split}.json", result)
    return result


def _segment(table: pa.Table, where: str) -> NDArray[np.bool_]:
    name, separator, text = where.partition("=")
    if not separator or name not in table.column_names:
        raise ValueError(f"--where {where}: expected COLUMN=VALUE, with one of {', '.join(table.column_names)}")
    column = table.column(name)
    try:
        is_in = pc.equal(column, pa.scalar(text).cast(column.type))
    except pa.ArrowException:
        raise ValueError(f"--where {where}: column '{name}' is {column.type} and has no such value") from None
    is_in_B: NDArray[np.bool_] = is_in.fill_null(False).to_numpy()
    if not is_in_B.any():
        raise ValueError(f"--where {where}: no row of the split has this value")
    return is_in_B


@dataclass(frozen=True)
class _Measure:
    """Measures answers on the picked rows of a split. `logged` are the logits of the tables, as logged."""

    run: Run
    split: SplitName
    tables: Mapping[SplitName, pa.Table]
    logged: Mapping[SplitName, Floats]
    picked_B: NDArray[np.bool_]
    replicates: int

    def all_tasks(self, logits_BO: Floats, *, as_served: bool) -> dict[str, Any]:
        """Metrics by task of the logits of the split's rows."""
        table = self.tables[self.split]
        groups_B = groups_of(self.run, table)
        measured: dict[str, Any] = {}
        for task in self.run.schema.tasks:
            position = self.run.schema.outputs.index(task.name)
            labels_B, counts_B = labels_of(task, table), observed_of(task, table) & self.picked_B
            labels_N, groups_N = labels_B[counts_B], groups_B[counts_B]
            logits_B = logits_BO[:, position]
            if isinstance(task, BinaryTask):
                probabilities_N = expit(logits_B[counts_B])
                found = asdict(
                    evaluate_binary(labels_N, probabilities_N, groups_N, replicates=self.replicates, seed=SEED)
                )
            else:
                means_B, how = self._means(task, position, logits_B, as_served=as_served)
                found = self._regression(labels_N, means_B[counts_B], groups_N)
                if task.transform != "none":
                    scale = self.run.fitted.targets[task.name]
                    learned_N = np.maximum(logits_B[counts_B] * scale.scale + scale.mean, 0.0)
                    found["label_mean"] = how
                    labels_N = transform_target(labels_N, task.transform)
                    found[task.transform] = self._regression(labels_N, learned_N, groups_N)
            measured[task.name] = {"kind": task.kind, **found}
        return measured

    def _regression(self, labels_N: Floats, answers_N: Floats, groups_N: NDArray[Any]) -> dict[str, Any]:
        return asdict(evaluate_regression(labels_N, answers_N, groups_N, replicates=self.replicates, seed=SEED))

    def _means(
        self, task: RegressionTask, position: int, logits_B: Floats, *, as_served: bool
    ) -> tuple[Floats, str | None]:
        """means_B in the label's unit of all rows, and on what their map was fitted."""
        scale = self.run.fitted.targets[task.name]
        bare_B = bare_answers(task, scale, logits_B)
        if task.transform == "none":
            return bare_B, None
        table = self.tables["validation"]
        known_B = observed_of(task, table)
        labels_N = labels_of(task, table)[known_B]
        answers_N = bare_answers(task, scale, self.logged["validation"][known_B, position])
        try:
            if self.split != "validation" or as_served:
                return fit_label_mean(labels_N, answers_N, scale.upper)(bare_B), "fitted on the validation split"
            groups_N = groups_of(self.run, table)[known_B]
            means_B = bare_B.copy()
            means_B[known_B] = cross_fitted(labels_N, answers_N, groups_N, scale.upper)
        except NoLabelMeanError as error:
            log.warning("task %s is measured without a correction to its label's mean: %s", task.name, error)
            return bare_B, f"none: {error}"
        return means_B, "cross-fitted on the validation split"


def groups_of(run: Run, table: pa.Table) -> NDArray[Any]:
    """The group of every row, as codes: its user, or the row itself where no user column is named."""
    return group_codes(table, run.config.data.group_by)


def print_table(result: dict[str, Any]) -> None:
    """Prints an evaluation for people."""
    # Wide enough for an interval under each value, also where the output is no terminal.
    console = Console()
    console.width = max(console.width, 120)
    intervals = result["intervals"]
    ungrouped = intervals["rows_without_group"]
    console.print(
        f"\n{result['run']}: {result['split']} split, {counted(result['rows'], 'row')}; "
        f"95 % intervals from {intervals['replicates']} bootstrap samples over {intervals['over']}"
        + (f"; {counted(ungrouped, 'row')} without it are one group" if ungrouped else ""),
        highlight=False,
    )
    as_served = result.get("tasks_as_served")
    _print_tasks(console, "" if as_served is None else "As logged: what was learned", result["tasks"])
    if as_served is not None:
        _print_as_served(console, as_served)


def _print_tasks(console: Console, title: str, tasks: dict[str, Any]) -> None:
    binary = Table("task", "positives", "NE", "AUC", "GAUC", "calibration", title=title, title_justify="left")
    regression = Table("task", "scale", "calibration", "MSE", "RMSE", "MAE", "Spearman")
    for name, task in tasks.items():
        if task["kind"] == "binary":
            cells = [_cell(task[metric]) for metric in ("normalized_entropy", "auc", "gauc", "calibration_ratio")]
            binary.add_row(name, f"{task['positives']:,}", *cells)
            continue
        for scale, measured in {"label's unit": task, "log1p": task.get("log1p")}.items():
            if measured is not None:
                metrics = ("calibration_ratio", "mse", "rmse", "mae", "spearman")
                regression.add_row(name, scale, *(_cell(measured[metric]) for metric in metrics))
    if not binary.row_count:
        regression.title, regression.title_justify = title, "left"
    for table in (binary, regression):
        if table.row_count:
            console.print(table)


def _print_as_served(console: Console, tasks: dict[str, Any]) -> None:
    """The order alone."""
    console.print(
        "As served: training_only features (a position, say) have their serving value, under which no label was "
        "observed, so only the order is measured.",
        highlight=False,
    )
    table = Table("task", "AUC", "GAUC", "Spearman")
    for name, task in tasks.items():
        table.add_row(name, *(_cell(task[metric]) if metric in task else "" for metric in ("auc", "gauc", "spearman")))
    console.print(table)


def _cell(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None:
        return "-"
    shown = _short(estimate["value"])
    return shown if estimate["low"] is None else f"{shown}\n{_short(estimate['low'])}..{_short(estimate['high'])}"


def _short(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"
