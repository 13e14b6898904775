"""Kinds of tasks, one file each: the keys of the schema, outputs, answers, and all other differences of kinds."""

from typing import Annotated, get_args

from pydantic import BeforeValidator, Field

from model.strict_yaml import refuse_unknown_kind
from model.tasks.binary import BinaryTask
from model.tasks.multiclass import MulticlassTask
from model.tasks.regression import RegressionTask

Task = Annotated[
    BinaryTask | RegressionTask | MulticlassTask,
    Field(discriminator="kind"),
    BeforeValidator(lambda data: refuse_unknown_kind(data, KINDS, "task's type")),
]

# Every name that `kind` may have.
KINDS: list[str] = [
    kind for task in get_args(get_args(Task)[0]) for kind in get_args(task.model_fields["kind"].annotation)
]

__all__ = ["KINDS", "BinaryTask", "MulticlassTask", "RegressionTask", "Task"]
