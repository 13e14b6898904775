"""Results of an image experiment, as plain JSON: the paper's Tables 1 and 2, its t-test, and what its figures draw.

In: the results of the finished cells. Out: `results.json`'s content.

Shapes: T tasks, M modules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from training.compare.contrasts import one_sided_tests
from training.compare.statistics import spread
from training.images.config import Cell, ImageExperiment
from training.images.tasks import ImageTasks
from training.inspect.conflicts import cosines

Json = dict[str, Any]

# Accuracy that a method gains from one quarter of its epochs to the last one, from which on it counts as rising: .1
# points, half of the paper's standard deviation over seeds.
RISING = 0.001


def summarise(
    experiment: ImageExperiment, tasks: ImageTasks, finished: Mapping[Cell, Json], failures: Mapping[str, str]
) -> Json:
    """Accuracies are shares of right answers on the test rows. A seed's is the mean over tasks."""
    by_method: dict[str, dict[int, Json]] = {}
    for cell, result in finished.items():
        by_method.setdefault(cell.method, {})[cell.seed] = result
    methods = {name: _method(experiment, name, seeds, tasks.names) for name, seeds in by_method.items()}
    return {
        "name": experiment.name,
        "settings": experiment.model_dump(mode="json", exclude={"output"}),
        "tasks": tasks.names,
        "rows": {"train": len(tasks.train), "validation": len(tasks.validation), "test": len(tasks.test)},
        "methods": methods,
        "hypotheses": [
            {"better": entry.better, "than": entry.than}
            | one_tail_t_test(_accuracies(methods, entry.better), _accuracies(methods, entry.than))
            for entry in experiment.hypotheses
        ],
        "module_counts": _module_counts(experiment, methods),
        "failures": dict(failures),
        "unfinished": [str(cell) for cell in experiment.cells() if cell not in finished],
    }


def one_tail_t_test(better: Sequence[float], than: Sequence[float]) -> Json:
    """The two-sample t-test of the paper's A.2, equal variances: is the mean of `better` above that of `than`?

    Null for t and p where there is nothing to test: fewer than two seeds, or no spread at all."""
    freedom = max(len(better) + len(than) - 2, 0)
    found = one_sided_tests(np.array(better), np.array(than), ())["two_sample_one_tailed"]
    return {**(found or {"t": None, "p": None}), "df": freedom}


def _method(experiment: ImageExperiment, name: str, seeds: Mapping[int, Json], tasks: Sequence[str]) -> Json:
    by_task = {task: [result["accuracy"][task] for result in seeds.values()] for task in tasks}
    by_seed = {str(seed): sum(result["accuracy"].values()) / len(tasks) for seed, result in seeds.items()}
    first = next(iter(seeds.values()))
    return {
        "label": _label(experiment, name),
        "accuracy": asdict(spread(list(by_seed.values()))) | {"best": max(by_seed.values()), "by_seed": by_seed},
        "tasks": {task: asdict(spread(values)) for task, values in by_task.items()},
        "parameters": first["parameters"],
        "seconds": sum(result["seconds"] for result in seeds.values()) / len(seeds),
        "paper": _paper(experiment, name),
        **_by_epoch(list(seeds.values())),
        "chosen_epochs": [result["chosen_epoch"] for result in seeds.values()],
        **{
            key: {str(seed): result[key] for seed, result in seeds.items() if result[key]}
            for key in ("perplexity", "placebo_perplexity")
        },
        "cosines": {
            str(seed): {
                layer: cosines(torch.tensor(chances_TM)).tolist() for layer, chances_TM in result["policies"].items()
            }
            for seed, result in seeds.items()
            if result["policies"]
        },
    }


def _by_epoch(results: Sequence[Json]) -> Json:
    """Accuracy by epoch, the mean over tasks and seeds, and its gain.

    The gain is that of the last quarter of the epochs over the quarter before, None with fewer than four epochs."""
    curves = np.array([result["validation_accuracy"] or result["test_accuracy"] for result in results])
    quarter = curves.shape[1] // 4
    gain = None
    if quarter:
        gain = float(curves[:, -quarter:].mean() - curves[:, -2 * quarter : -quarter].mean())
    is_rising = gain is not None and gain > RISING
    return {"accuracy_by_epoch": curves.mean(axis=0).tolist(), "gain": gain, "is_undertrained": is_rising}


def _paper(experiment: ImageExperiment, name: str) -> Json | None:
    entry = next((entry for entry in experiment.methods if entry.name == name), None)
    return None if entry is None or entry.paper is None else entry.paper.model_dump()


def _label(experiment: ImageExperiment, name: str) -> str:
    return next((entry.label for entry in experiment.methods if entry.name == name), None) or name


def _accuracies(methods: Mapping[str, Json], name: str) -> list[float]:
    return list(methods[name]["accuracy"]["by_seed"].values()) if name in methods else []


def _module_counts(experiment: ImageExperiment, methods: Mapping[str, Json]) -> Json | None:
    if experiment.module_counts is None:
        return None
    names = {count: experiment.counted(count) for count in sorted(experiment.module_counts.counts)}
    return {
        "method": experiment.module_counts.method,
        "label": _label(experiment, experiment.module_counts.method),
        "accuracies": {str(count): _accuracies(methods, name) for count, name in names.items() if name in methods},
    }
