"""A run that starts from a parent: filled from it, measured against it, and what the manifest says of both.

In: a run whose training file names `init_from`, its ranker with fresh weights. Out: `parent.json` in the run's folder
(what the parent is, its data window, what was taken of it, its errors on this run's validation split), and after
training the comparison that summary.json and the manifest have. A run that answers a task worse than its parent by more
than `init_from.tolerance` is not exported unless a flag says so.

An error is NE for a binary task, the squared error over the labels' variance for a regression: 1 for a constant answer,
lower is better. Both rankers answer the same rows.

Shapes: B rows, O outputs.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from model.features.encoder import FeatureEncoder
from model.ranker import Ranker
from model.schema import FeedSchema
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, read_splits
from training.distributed.ranks import Ranks
from training.evaluate.validation import predict, relative_errors
from training.run.history import OBJECTIVE, VALIDATION
from training.run.run import Run, read_json, write_json
from training.start.parent import Parent
from training.start.warm_start import print_taken, warm_start

log = logging.getLogger(__name__)

PARENT = "parent.json"


def start_from(parent: Parent, run: Run, ranker: Ranker, ranks: Ranks, *, show: bool) -> None:
    """Fill a fresh ranker, every process its part, and write parent.json. Raises ValueError where nothing of the
    parent fits."""
    taken = warm_start(ranker, run.schema, run.fitted, run.config.network, parent)

    def write() -> None:
        if show:
            print_taken(taken, parent)
        about: dict[str, Any] = {**parent.about, "taken": [asdict(one) for one in taken]}
        try:
            about["validation"] = _errors(parent, run)
        except ValueError as error:
            log.warning("the parent is not measured, so this run is not compared with it: %s", error)
            about |= {"validation": {}, "not_measured": str(error)}
        write_json(run.path / PARENT, about)

    ranks.first_does(write)


def against_parent(run: Run, history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Comparison with a run's parent for summary.json, empty where it has none. It has by task the parent's error and
    the run's own at its best point, and the tasks that are worse beyond the tolerance."""
    if run.config.init_from is None:
        return {}
    about = read_json(run.path / PARENT)
    best = min(history, key=lambda line: line[OBJECTIVE])
    own = {task: best[f"{VALIDATION}{task}"] for task in about["validation"] if f"{VALIDATION}{task}" in best}
    tolerance, rate_factor = run.config.init_from.tolerance, run.config.init_from.rate_factor
    worse = [task for task, error in own.items() if error > about["validation"][task] * (1 + tolerance)]
    if worse:
        log.warning("worse than the parent by more than %g on the validation split: %s", tolerance, ", ".join(worse))
    compared = {task: {"parent": about["validation"][task], "own": error} for task, error in own.items()}
    kept = {key: value for key, value in about.items() if key not in ("taken", "validation")}
    decided = {"tolerance": tolerance, "rate_factor": rate_factor}
    return {"parent": {**kept, "errors": compared, **decided, "worse": worse}}


def refuse_worse(run: Run, summary: Mapping[str, Any]) -> None:
    """Raise ValueError for a run that answers a task worse than its parent, beyond the tolerance."""
    found = summary.get("parent", {})
    for task in found.get("worse", ()):
        errors = found["errors"][task]
        raise ValueError(
            f"{run.path}: task {task} is answered worse than by the parent it started from: error {errors['own']:.4f} "
            f"against {errors['parent']:.4f} on the validation split, tolerance {found['tolerance']:g}; train on, or "
            "give --accept-worse"
        )


def _errors(parent: Parent, run: Run) -> dict[str, float]:
    """The parent's error of every task that it shares with the run, on the run's validation split."""
    theirs = {task.name: task for task in parent.schema.tasks}
    shared = tuple(
        task for task in run.schema.tasks if task.name in theirs and theirs[task.name].outputs == task.outputs
    )
    if not shared:
        raise ValueError("it shares no task with this run")
    schema: FeedSchema = parent.schema.model_copy(update={"tasks": shared})
    table = read_splits(run.config.data, schema, ("validation",))["validation"]
    encoder = FeatureEncoder(schema, parent.fitted.model_copy(update={"targets": run.fitted.targets}))
    rows = Rows.encode(schema, encoder, table, columns_from_arrow(schema, table), as_served=False)
    places = [parent.schema.outputs.index(output) for output in schema.outputs]
    logits_BO = predict(parent.ranker(), rows)[:, places]
    return relative_errors(schema, logits_BO, rows)
