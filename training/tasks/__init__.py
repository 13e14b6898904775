"""Kinds of tasks as they are learned, one file each: labels, targets, losses, and all other differences of kinds."""

from collections.abc import Mapping

from model.tasks.task import BaseTask, TargetScale
from training.tasks.binary import LearnedBinary
from training.tasks.learned import LearnedTask
from training.tasks.multiclass import LearnedMulticlass
from training.tasks.regression import LearnedRegression

# By the schema's `kind`.
KINDS: dict[str, type[LearnedTask]] = {
    "binary": LearnedBinary,
    "regression": LearnedRegression,
    "multiclass": LearnedMulticlass,
}


def learned(task: BaseTask, scales: Mapping[str, TargetScale] | None = None) -> LearnedTask:
    """A task as it is learned. Targets and outputs of a kind with a scale need that of the training split."""
    return KINDS[task.kind](task, (scales or {}).get(task.name))


__all__ = ["KINDS", "LearnedTask", "learned"]
