"""Paired bootstrap over users: how far the difference of two networks would move, had other users been logged.

In: the outputs of every seed of every network, task by task. Out: the replicates of each seed's difference from the
baseline, per task and for the mean over tasks. All networks, tasks and seeds are measured on the same draws of users,
so what they have in common cancels, and what is left is crossed: every seed on every draw.

Shapes: R draws of users, S seeds, B rows, O outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from training.compare.measures import TaskTruth
from training.metrics.bootstrap import Floats, bootstrap_values

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
        (task.name, network, seed): task.on_draws(metric, outputs_BO, num_groups)
        for network, of_network in outputs.items()
        for task in tasks
        for seed, outputs_BO in of_network[task.name].items()
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
