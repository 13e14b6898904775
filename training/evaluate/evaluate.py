"""Measures a run's best ranker on a split: what `python -m training evaluate RUN` prints and writes.

Metrics compare the ranker with the log: training_only features have their logged value, and nothing corrects for
sampled negatives. A quantity that is learned on a transformed scale is measured on it, and in the label's unit as the
mean that is answered (training/evaluate/label_means.py): on the validation split by maps that did not see the row's
user. Where the schema has training_only features, the same is measured once more `as_served`, with their serving value.
What counts there is the order that users will see. Labels were observed where items stood, so how large answers are
says little beside them, and is not printed. Intervals come from a bootstrap over users (`data.group_by`), or over rows
where no user column is named.

Shapes: B rows, N rows of them where a task is observed, O outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from model.tasks import Task
from training.config import SplitName
from training.data.groups import group_codes, rows_without_group
from training.data.rows import labels_of, observed_of, read_splits
from training.evaluate.label_means import logits_of
from training.metrics.bootstrap import Floats
from training.run.data_record import warn_of_changes
from training.run.run import Run, write_json
from training.tasks import KINDS, learned
from training.tasks.learned import Bootstrap, Sample
from training.wording import counted


def evaluate(run: Run, split: SplitName = "test", *, replicates: int = 500, where: str | None = None) -> dict[str, Any]:
    """Metrics of every task with intervals, also written to the run as evaluation-<split>.json.

    `where` ("tab=1") measures the rows with that value of a column alone, and leaves the run's file as it is."""
    run.summary()
    warn_of_changes(run)
    torch.set_num_threads(run.config.threads)
    has_means = any(learned(task).is_mapped for task in run.schema.tasks)
    splits: tuple[SplitName, ...] = ("validation", split) if has_means and split != "validation" else (split,)
    tables = read_splits(run.config.data, run.schema, splits)
    picked_B = np.ones(tables[split].num_rows, bool) if where is None else _segment(tables[split], where)
    ranker = run.best_ranker()
    logged = {name: logits_of(run, ranker, table, as_served=False) for name, table in tables.items()}
    measure = _Measure(run, split, tables, logged, picked_B, Bootstrap(replicates))
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
    bootstrap: Bootstrap

    def all_tasks(self, logits_BO: Floats, *, as_served: bool) -> dict[str, Any]:
        """Metrics by task of the logits of the split's rows."""
        # On the validation split as it was logged, maps are cross-fitted.
        is_own = as_served or self.split != "validation"
        measured: dict[str, Any] = {}
        for task in self.run.schema.tasks:
            kind = learned(task, self.run.fitted.targets)
            picked_N = self.picked_B[observed_of(task, self.tables[self.split])]
            sample = self._sample(task, self.split, logits_BO)
            validation = (
                self._sample(task, "validation", self.logged["validation"]) if kind.is_mapped and is_own else None
            )
            measured[task.name] = {"kind": task.kind, **kind.measure(sample, picked_N, validation, self.bootstrap)}
        return measured

    def _sample(self, task: Task, split: SplitName, logits_BO: Floats) -> Sample:
        table = self.tables[split]
        observed_B = observed_of(task, table)
        logits_NO = logits_BO[observed_B, self.run.schema.output_slices[task.name]]
        return Sample(labels_of(task, table)[observed_B], logits_NO, groups_of(self.run, table)[observed_B])


def groups_of(run: Run, table: pa.Table) -> NDArray[Any]:
    """The group of every row, as codes: its user, or the row itself where no user column is named."""
    return group_codes(table, run.config.data.group_by)


def print_table(result: dict[str, Any]) -> None:
    """Print an evaluation for people."""
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
    for name, kind in KINDS.items():
        table = Table("task", *kind.table_columns, title=title, title_justify="left")
        for task, measured in tasks.items():
            if measured["kind"] == name:
                for row in kind.table_rows(measured):
                    table.add_row(task, *(_cell(cell) if isinstance(cell, dict) else cell for cell in row))
        if table.row_count:
            console.print(table)
            title = ""


def _print_as_served(console: Console, tasks: dict[str, Any]) -> None:
    """The order alone."""
    console.print(
        "As served: training_only features (a position, say) have their serving value, under which no label was "
        "observed, so only the order is measured.",
        highlight=False,
    )
    metrics = {"auc": "AUC", "gauc": "GAUC", "macro_auc": "macro AUC", "spearman": "Spearman", "xauc": "XAUC"}
    held = [metric for metric in metrics if any(metric in task for task in tasks.values())]
    table = Table("task", *(metrics[metric] for metric in held))
    for name, task in tasks.items():
        table.add_row(name, *(_cell(task[metric]) if metric in task else "" for metric in held))
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
