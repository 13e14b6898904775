"""Measures a run's best ranker on a split: what `python -m training evaluate RUN` prints and writes.

Metrics compare the ranker with the log: training_only features have their logged value, and nothing corrects for
sampled negatives. Where the schema has training_only features, the same is measured once more `as_served`, with their
serving value: the order that users will see, and a calibration that is off by as much as those features explained.
Intervals come from a bootstrap over users (`data.group_by`), or over rows where no user column is named.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.special import expit

from model.features import TargetScale, inverse_target
from model.ranker import Ranker
from model.schema import BinaryTask, RegressionTask
from training.config import SplitName
from training.data import Rows, columns_from_arrow, labels_of, observed_of, read_splits
from training.data_record import warn_of_changes
from training.metrics import evaluate_binary, evaluate_regression
from training.run import Run, write_json
from training.validation import predict

SEED = 0


def evaluate(run: Run, split: SplitName = "test", *, replicates: int = 500, where: str | None = None) -> dict[str, Any]:
    """Metrics of every task with intervals; also written to the run as evaluation-<split>.json.

    `where` ("tab=1") measures the rows with that value of a column alone, and leaves the run's file as it is."""
    run.summary()
    warn_of_changes(run)
    torch.set_num_threads(run.config.threads)
    table = read_splits(run.config.data, run.schema, (split,))[split]
    if where is not None:
        table = _segment(table, where)
    ranker = run.best_ranker()
    result: dict[str, Any] = {
        "run": run.path.name,
        "split": split if where is None else f"{split}, {where}",
        "rows": table.num_rows,
        "intervals": {"level": 0.95, "over": run.config.data.group_by or "rows", "replicates": replicates},
        "tasks": _measure(run, ranker, table, replicates, as_served=False),
    }
    if any(feature.side == "training_only" for feature in run.schema.features):
        result["tasks_as_served"] = _measure(run, ranker, table, replicates, as_served=True)
    if where is None:
        write_json(run.path / f"evaluation-{split}.json", result)
    return result


def _segment(table: pa.Table, where: str) -> pa.Table:
    name, separator, text = where.partition("=")
    if not separator or name not in table.column_names:
        raise ValueError(f"--where {where}: expected COLUMN=VALUE, with one of {', '.join(table.column_names)}")
    column = table.column(name)
    try:
        segment = table.filter(pc.equal(column, pa.scalar(text).cast(column.type)))
    except pa.ArrowException:
        raise ValueError(f"--where {where}: column '{name}' is {column.type} and has no such value") from None
    if not segment.num_rows:
        raise ValueError(f"--where {where}: no row of the split has this value")
    return segment


def _measure(run: Run, ranker: Ranker, table: pa.Table, replicates: int, *, as_served: bool) -> dict[str, Any]:
    columns = columns_from_arrow(run.schema, table)
    rows = Rows.encode(run.schema, run.encoder, table, columns, as_served=as_served)
    logits_BT = predict(ranker, rows).astype(np.float64)
    groups_B = groups_of(run, table)
    tasks: dict[str, Any] = {}
    for position, task in enumerate(run.schema.tasks):
        observed_B = observed_of(task, table)
        labels_B, logits_B = labels_of(task, table)[observed_B], logits_BT[observed_B, position]
        groups = groups_B[observed_B]
        if isinstance(task, BinaryTask):
            measured = asdict(evaluate_binary(labels_B, expit(logits_B), groups, replicates=replicates, seed=SEED))
        else:
            measured = _regression(task, run.fitted.targets[task.name], labels_B, logits_B, groups, replicates)
        tasks[task.name] = {"kind": task.kind, **measured}
    return tasks


def groups_of(run: Run, table: pa.Table) -> NDArray[Any]:
    """The group of every row, as codes: its user, or the row itself where no user column is named."""
    group_by = run.config.data.group_by
    if group_by is None:
        return np.arange(table.num_rows)
    column = table.column(group_by)
    if column.null_count:
        raise ValueError(f"data.group_by: column '{group_by}' holds {column.null_count} nulls; a row needs its user")
    try:
        return np.asarray(column.combine_chunks().dictionary_encode().indices)
    except pa.ArrowNotImplementedError:
        raise ValueError(f"data.group_by: column '{group_by}' of type {column.type} does not name users") from None


def _regression(
    task: RegressionTask,
    scale: TargetScale,
    labels_B: NDArray[np.float64],
    logits_B: NDArray[np.float64],
    groups_B: NDArray[Any],
    replicates: int,
) -> dict[str, Any]:
    """The label's own unit, and beside it the transformed scale on which the task is learned."""
    transformed_B = np.maximum(logits_B * scale.scale + scale.mean, 0.0)
    own_unit_B = np.minimum(inverse_target(transformed_B, task.transform), scale.upper)
    measured = asdict(evaluate_regression(labels_B, own_unit_B, groups_B, replicates=replicates, seed=SEED))
    if task.transform == "log1p":
        learned = evaluate_regression(np.log1p(labels_B), transformed_B, groups_B, replicates=replicates, seed=SEED)
        measured["log1p"] = asdict(learned)
    return measured


def print_table(result: dict[str, Any]) -> None:
    """Prints an evaluation for people."""
    # Wide enough for an interval under each value, also where the output is no terminal.
    console = Console()
    console.width = max(console.width, 110)
    intervals = result["intervals"]
    console.print(
        f"\n{result['run']}: {result['split']} split, {result['rows']:,} rows; "
        f"95 % intervals from {intervals['replicates']} bootstrap samples over {intervals['over']}",
        highlight=False,
    )
    _print_tasks(console, "", result["tasks"])
    if "tasks_as_served" in result:
        _print_tasks(console, "training_only features at their serving value", result["tasks_as_served"])


def _print_tasks(console: Console, title: str, tasks: dict[str, Any]) -> None:
    binary = Table("task", "positives", "NE", "AUC", "GAUC", "calibration", title=title, title_justify="left")
    regression = Table("task", "scale", "RMSE", "MAE", "Spearman", title=title, title_justify="left")
    for name, task in tasks.items():
        if task["kind"] == "binary":
            cells = [_cell(task[metric]) for metric in ("normalized_entropy", "auc", "gauc", "calibration_ratio")]
            binary.add_row(name, f"{task['positives']:,}", *cells)
        else:
            for scale, measured in {"label's unit": task, "log1p": task.get("log1p")}.items():
                if measured is not None:
                    regression.add_row(
                        name, scale, *(_cell(measured[metric]) for metric in ("rmse", "mae", "spearman"))
                    )
    for table in (binary, regression):
        if table.row_count:
            console.print(table)


def _cell(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None:
        return "-"
    shown = _short(estimate["value"])
    return shown if estimate["low"] is None else f"{shown}\n{_short(estimate['low'])}..{_short(estimate['high'])}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"
