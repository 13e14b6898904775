"""Models that the town begins with: one of its log so far, and one of users with the new tastes alone.

In: the town's files. Out: `models/feed/1`, which serves on day 0, the same model under a name of its own, never to be
retrained, and the cold model, trained alike on a log of the same size from after the shift. Every step is a command of
the project.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from deploy.loop.arm import VALUE
from deploy.loop.files import MODEL, LoopFiles, training
from deploy.loop.town import Town
from training.datasets.simulate import simulate

STATIC, COLD = "static", "cold"
# The log ends on its validation day: none of its days is left to test on.
SPLIT = {"column": "date", "train": {"max": 20240113}, "validation": 20240114}

# Runs `python -m ...` to its end. Raises ChildError.
RunCommand = Callable[..., None]


def prepare(files: LoopFiles, town: Town, rows: int, run: RunCommand) -> None:
    """Simulate, train and publish. Raises ChildError."""
    for name, tastes in ((STATIC, None), (COLD, town.tastes())):
        log = files.root / "data" / name
        simulate(rows, town.seed, log, users=town.users, items=town.items, tastes=tastes)
        trained = train(files, training(log, SPLIT, files.root / "runs" / name), run)
        export(trained, files.references, name, run)
        if name == STATIC:
            export(trained, files.models, MODEL, run)


def train(files: LoopFiles, train_file: Mapping[str, Any], run: RunCommand) -> Path:
    """Train by a training file. Returns the run. Raises ChildError."""
    output = Path(train_file["output"])
    path = files.root / f"train-{output.name}.yaml"
    path.write_text(yaml.safe_dump(train_file, sort_keys=False))
    run("training", "train", str(path))
    return output


def export(trained: Path, models: Path, name: str, run: RunCommand, *flags: str) -> None:
    """Publish a run as the next version of a model, with the town's value model beside it where there is none. Raises
    ChildError."""
    run("training", "export", str(trained), "--models", str(models), "--name", name, *flags)
    value_models = models / name / "value_models.yaml"
    if not value_models.exists():
        value_models.write_text(yaml.safe_dump({"default": {"kind": "weighted_sum", "weights": VALUE}}))
