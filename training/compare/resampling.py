"""Paired bootstrap over users: how far the difference of two networks would move, had other users been logged.

In: the outputs of every seed of every network, task by task. Out: percentile intervals of the difference of the
seed-averaged metric from the baseline's, per task and for the mean over tasks. All networks, tasks and seeds are
measured on the same draws of users, so what they have in common cancels.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import expit

from training.bootstrap import Floats, Statistic, bootstrap_intervals
from training.compare.measures import TaskTruth
from training.metrics import WeightedAUC, auc_per_group, base_entropy, cross_entropy, divide

SEED = 0
# The name of the mean over tasks, beside the tasks' own.
MEAN = "mean"

Interval = tuple[float, float] | None


def paired_intervals(
    metric: str,
    tasks: Sequence[TaskTruth],
    outputs: Mapping[str, Mapping[str, Mapping[int, Floats]]],
    baseline: str,
    num_groups: int,
    *,
    replicates: int,
    level: float = 0.95,
) -> dict[str, dict[str, Interval]]:
    """[task or MEAN][network] -> (low, high) of the network's metric minus the baseline's; None where undefined.

    `outputs[network][task][seed]` are those on the task's observed rows; seeds that the baseline has not are left out.
    `groups_B` of the tasks number the split's `num_groups` users."""
    names = [task.name for task in tasks]
    networks = [network for network in outputs if network != baseline]
    if num_groups < 2 or not names:
        return {name: dict.fromkeys(networks) for name in (*names, MEAN)}
    measured = {
        (network, task.name, seed): _remember_last(_statistic(metric, task, outputs_B, num_groups))
        for network, of_network in outputs.items()
        for task in tasks
        for seed, outputs_B in of_network[task.name].items()
    }
    differences: dict[str, Statistic] = {}
    keys = [(name, network) for name in (*names, MEAN) for network in networks]
    for number, (name, network) in enumerate(keys):
        pairs = [
            (measured[network, task, seed], measured[baseline, task, seed])
            for task in (names if name == MEAN else [name])
            for seed in outputs[network][task]
            if seed in outputs[baseline][task]
        ]
        if pairs:
            differences[str(number)] = _mean_difference(pairs)
    found = bootstrap_intervals(differences, num_groups, replicates=replicates, seed=SEED, level=level)
    result: dict[str, dict[str, Interval]] = {name: {} for name in (*names, MEAN)}
    for number, (name, network) in enumerate(keys):
        result[name][network] = found.get(str(number))
    return result


def _mean_difference(pairs: Sequence[tuple[Statistic, Statistic]]) -> Statistic:
    def averaged(draws_RG: Floats) -> Floats:
        total: Floats = np.sum([one(draws_RG) - other(draws_RG) for one, other in pairs], axis=0)
        return total / len(pairs)

    return averaged


def _remember_last(statistic: Statistic) -> Statistic:
    """Measures each chunk of draws once, however many differences read it."""
    last: list[Floats] = []

    def remembered(draws_RG: Floats) -> Floats:
        if not last or last[0] is not draws_RG:
            last[:] = [draws_RG, statistic(draws_RG)]
        return last[1]

    return remembered


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
