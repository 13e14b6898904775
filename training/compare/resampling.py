"""Paired bootstrap over users: how far the difference of two networks would move, had other users been logged.

In: the outputs of every seed of every network, task by task. Out: the replicates of each seed's difference from the
baseline, per task and for the mean over tasks. All networks, tasks and seeds are measured on the same draws of users,
so what they have in common cancels, and what is left is crossed: every seed on every draw.

Shapes: R draws of users, S seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit

from training.compare.measures import TaskTruth
from training.metrics.bootstrap import Floats, Statistic, bootstrap_values
from training.metrics.metrics import WeightedAUC, auc_per_group, base_entropy, cross_entropy, divide

SEED = 0
# The name of the mean over tasks, beside the tasks' own.
MEAN = "mean"


@dataclass(frozen=True, slots=True)
class Replicates:
    """[task or MEAN][network] -> a metric on every draw of users, NaN where undefined.

    `levels_R` is its mean over the network's seeds, `differences_RS` its difference from the baseline for each seed
    that both have."""

    levels_R: dict[str, dict[str, Floats]] = field(default_factory=dict)
    differences_RS: dict[str, dict[str, Floats]] = field(default_factory=dict)


def paired_replicates(
    metric: str,
    tasks: Sequence[TaskTruth],
    outputs: Mapping[str, Mapping[str, Mapping[int, Floats]]],
    baseline: str,
    num_groups: int,
    *,
    replicates: int,
) -> Replicates:
    """A metric of all networks on the same draws of users.

    `outputs[network][task][seed]` are those on the task's observed rows. `groups_B` of the tasks number the split's
    `num_groups` users. With fewer than 2 of them there is nothing to draw, and the result is empty. A network that
    shares no seed with the baseline has no differences."""
    if num_groups < 2 or not tasks:
        return Replicates()
    keys = {
        (task.name, network, seed): _statistic(metric, task, outputs_B, num_groups)
        for network, of_network in outputs.items()
        for task in tasks
        for seed, outputs_B in of_network[task.name].items()
    }
    values = bootstrap_values(keys, num_groups, replicates=replicates, seed=SEED)
    found = Replicates()
    for task in tasks:
        levels = found.levels_R.setdefault(task.name, {})
        differences = found.differences_RS.setdefault(task.name, {})
        for network, of_network in outputs.items():
            of_seed = {seed: values[task.name, network, seed] for seed in of_network[task.name]}
            levels[network] = np.mean([*of_seed.values()], axis=0)
            base = {seed: values[task.name, baseline, seed] for seed in outputs[baseline][task.name]}
            pairs = [of_seed[seed] - base[seed] for seed in of_seed if seed in base]
            if network != baseline and pairs:
                differences[network] = np.stack(pairs, axis=1)
    for of_tasks in (found.levels_R, found.differences_RS):
        networks = [*of_tasks[tasks[0].name]]
        of_tasks[MEAN] = {network: np.mean([of_tasks[t.name][network] for t in tasks], axis=0) for network in networks}
    return found


def _statistic(metric: str, task: TaskTruth, outputs_B: Floats, num_groups: int) -> Statistic:
    labels_B, codes_B = task.labels_B, task.groups_B
    if metric == "auc":
        weighted = WeightedAUC(labels_B, outputs_B, codes_B)
        return lambda draws_RG: np.array([weighted(draws_G) for draws_G in draws_RG])
    if metric == "gauc":
        auc_G, rows_used_G = auc_per_group(labels_B, outputs_B, codes_B, num_groups)
        return lambda draws_RG: divide(draws_RG @ (auc_G * rows_used_G), draws_RG @ rows_used_G)
    rows_G = np.bincount(codes_B, minlength=num_groups).astype(np.float64)
    if metric in ("mse", "accuracy"):
        is_right_B = (outputs_B > 0) == (labels_B > 0.5)
        sums_G = np.bincount(codes_B, (outputs_B - labels_B) ** 2 if metric == "mse" else is_right_B, num_groups)
        return lambda draws_RG: divide(draws_RG @ sums_G, draws_RG @ rows_G)
    assert metric == "normalized_entropy", f"no bootstrap of {metric}"
    loss_G = np.bincount(codes_B, cross_entropy(labels_B, expit(outputs_B)), num_groups)
    label_G = np.bincount(codes_B, labels_B, num_groups)

    def of_base_entropy(draws_RG: Floats) -> Floats:
        rows_R = draws_RG @ rows_G
        return divide(draws_RG @ loss_G, rows_R * base_entropy(divide(draws_RG @ label_G, rows_R)))

    return of_base_entropy
