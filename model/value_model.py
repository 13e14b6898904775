"""Value models: a task's answers -> one combined score per candidate.

In: `<models>/<name>/value_models.yaml`, validated against the model's tasks before it is used. Out: `ValueModels`, each
with a version that is a hash of its content. Loss weights belong to training; the task weights here to serving, where
negative ones are normal (a dislike should cost).

Shapes: N candidates, T tasks.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from model.schema import BinaryTask, FeedSchema
from model.strict_yaml import StrictModel, read_yaml, unknown_key

FILE_NAME = "value_models.yaml"
DEFAULT = "default"


class WeightedSum(StrictModel):
    """score = sum over tasks of weight x answer; tasks without a weight do not count."""

    kind: Literal["weighted_sum"]
    weights: dict[str, float] = Field(min_length=1)


class ValueModel:
    """A value model bound to the tasks of a ranker."""

    def __init__(self, name: str, definition: WeightedSum, tasks: Sequence[str]) -> None:
        self.name = name
        self.definition = definition
        for task, weight in definition.weights.items():
            if task not in tasks:
                raise ValueError(unknown_key(task, list(tasks), "task"))
            if not np.isfinite(weight):
                raise ValueError(f"the weight of '{task}' must be a finite number")
        self._weights_T = np.array([definition.weights.get(task, 0.0) for task in tasks])
        canonical = json.dumps(definition.model_dump(mode="json"), sort_keys=True)
        self.version = hashlib.sha256(canonical.encode()).hexdigest()[:8]

    def score(self, answers_NT: NDArray[np.float32]) -> NDArray[np.float64]:
        """score_N of answers_NT; float64, so that large weights do not cost the small tasks their digits."""
        score_N: NDArray[np.float64] = answers_NT.astype(np.float64) @ self._weights_T
        return score_N


class ValueModels:
    """The value models of one ranker, by name; `default` always exists."""

    def __init__(self, models: Mapping[str, ValueModel], *, is_built_in: bool) -> None:
        self._models = dict(models)
        self.is_built_in = is_built_in

    def __getitem__(self, name: str) -> ValueModel:
        return self._models[name]

    def __contains__(self, name: object) -> bool:
        return name in self._models

    @property
    def names(self) -> list[str]:
        """All names, in file order."""
        return list(self._models)

    @classmethod
    def built_in(cls, schema: FeedSchema) -> "ValueModels":
        """The one that serves without a file: weight 1 on each binary task."""
        weights = {task.name: 1.0 for task in schema.tasks if isinstance(task, BinaryTask)}
        if not weights:
            weights = {task.name: 1.0 for task in schema.tasks}
        tasks = [task.name for task in schema.tasks]
        definition = WeightedSum(kind="weighted_sum", weights=weights)
        return cls({DEFAULT: ValueModel(DEFAULT, definition, tasks)}, is_built_in=True)

    @classmethod
    def from_yaml(cls, path: Path, schema: FeedSchema) -> "ValueModels":
        """Reads a value-model file. Raises ValueError naming the file, the value model and the rule."""
        data = read_yaml(path)
        if not isinstance(data, Mapping) or DEFAULT not in data:
            raise ValueError(f"{path}: needs a mapping of value models with one named '{DEFAULT}'")
        tasks = [task.name for task in schema.tasks]
        models = {}
        for name, entry in data.items():
            if not isinstance(name, str):
                raise ValueError(f"{path}: the name of a value model must be a string, got {name!r}")
            definition = WeightedSum.from_mapping(entry, f"{path}: {name}")
            try:
                models[name] = ValueModel(name, definition, tasks)
            except ValueError as error:
                raise ValueError(f"{path}: {name}: {error}") from None
        return cls(models, is_built_in=False)
