"""Looking inside a finished run: `python -m training inspect RUN` writes RUN/inside/.

    inside.json                                   every number, names beside them
    expert_weights.png  gradient_conflicts.png    heat maps of them
    policies.png  policy_perplexity.png           learned routing: the policies, and how they settled

Expert weights are those of networks with gates (AdaTT, MMoE, PLE) or transfers (AITM). Conflicts are those of networks
that share something. For the others that part is left out and the output says so.
"""

import logging
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from model.ranker import Ranker
from training.config import SplitName
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, read_splits
from training.files import replace_file
from training.inspect.conflicts import task_conflicts
from training.inspect.gates import level_gates
from training.inspect.plots import plot_conflicts, plot_expert_weights, plot_perplexity, plot_policies
from training.inspect.policies import layer_policies, perplexity_over_training
from training.run.data_record import warn_of_changes
from training.run.run import INSIDE, INSIDE_FILES, Run, write_json
from training.step.balancing.losses import TaskLosses

log = logging.getLogger(__name__)

# A backward pass per task each. The mean cosine over them is steady enough to be read.
BATCHES = 50


def inspect(
    run: Run,
    split: SplitName = "validation",
    *,
    name: str | None = None,
    rows: Rows | None = None,
    num_batches: int = BATCHES,
) -> dict[str, Any]:
    """Measure the best ranker of a run on a split and write RUN/inside/. Raises ValueError for an unfinished run.

    `name` is the run's in titles (default: its folder's). `rows` are the split's, where it has been read already."""
    ranker, rows = _open(run, split, rows)
    tasks, network = [task.name for task in run.schema.tasks], run.config.network
    levels = level_gates(ranker, rows, network.fusion, tasks)
    conflicts = None
    if not network.has_own_embeddings:
        losses, batch_size = TaskLosses(run.schema), run.config.batch_size
        conflicts = task_conflicts(ranker, rows, losses, tasks, batch_size=batch_size, num_batches=num_batches)
    kind, folder = network.fusion.kind, run.path / INSIDE
    title = f"{name or run.path.name} ({kind}), {split} split"
    result: dict[str, Any] = {
        "run": run.path.name,
        "network": kind,
        "split": split,
        "rows": len(rows),
        "expert_weights": None,
        "gradient_conflicts": None,
        "policies": None,
    }
    for name_of_picture in INSIDE_FILES[1:]:
        (folder / name_of_picture).unlink(missing_ok=True)
    policies = layer_policies(ranker.network.fusion, tasks)
    if policies:
        perplexity, placebos = (perplexity_over_training(run, of_placebos=of_placebos) for of_placebos in (False, True))
        result["policies"] = {
            "layers": [layer.as_json() for layer in policies],
            "perplexity_over_training": perplexity,
            "placebo_perplexity_over_training": placebos,
        }
        replace_file(folder / "policies.png", (plot_policies(policies, title),))
        replace_file(folder / "policy_perplexity.png", (plot_perplexity(perplexity, placebos, title),))
    if levels is None:
        log.info("%s has no gates: expert weights are left out", kind)
    else:
        result["expert_weights"] = [{"level": n, **level.as_json()} for n, level in enumerate(levels, start=1)]
        replace_file(folder / "expert_weights.png", (plot_expert_weights(levels, title),))
    if conflicts is None:
        log.info("with embeddings of their own the tasks share nothing: gradient conflicts are left out")
    else:
        result["gradient_conflicts"] = conflicts.as_json()
        replace_file(folder / "gradient_conflicts.png", (plot_conflicts(conflicts, title),))
    write_json(folder / "inside.json", result)
    return result


def _open(run: Run, split: SplitName, rows: Rows | None = None) -> tuple[Ranker, Rows]:
    run.summary()
    torch.set_num_threads(run.config.threads)
    ranker = run.best_ranker()
    if rows is not None:
        return ranker, rows
    warn_of_changes(run)
    table = read_splits(run.config.data, run.schema, (split,))[split]
    columns = columns_from_arrow(run.schema, table)
    return ranker, Rows.encode(run.schema, run.encoder, table, columns, as_served=False)


def print_tables(result: dict[str, Any]) -> None:
    """Print what `inspect` returned for people."""
    console = Console()
    console.width = max(console.width, 110)
    for level in result["expert_weights"] or []:
        table = Table("unit", *level["experts"], "gate entropy", title=f"level {level['level']}: mean expert weights")
        for unit, weights, entropy in zip(level["units"], level["mean_weights"], level["gate_entropy"], strict=True):
            table.add_row(unit, *(f"{weight:.2f}" for weight in weights), f"{entropy:.2f}")
        console.print(table)
    for layer in (result["policies"] or {"layers": []})["layers"]:
        modules = [f"module {number}" for number in range(len(layer["probabilities"][0]))]
        table = Table("task", *modules, "perplexity", title=f"layer {layer['layer']}: routing policy")
        for task, chances, perplexity in zip(layer["tasks"], layer["probabilities"], layer["perplexity"], strict=True):
            table.add_row(task, *(f"{chance:.2f}" for chance in chances), f"{perplexity:.2f}")
        console.print(table)
    conflicts = result["gradient_conflicts"]
    for place in ("representation", "parameters") if conflicts else ():
        title = f"cosine of task gradients at the shared {place}"
        table = Table("task", *conflicts["tasks"], title=title)
        for task, row in zip(conflicts["tasks"], conflicts[f"at_shared_{place}"], strict=True):
            table.add_row(task, *("-" if value is None else f"{value:+.2f}" for value in row))
        console.print(table)
