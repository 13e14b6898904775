"""A small experiment with a search: a shared-bottom, and a PLE whose experts are to be chosen."""

from pathlib import Path
from typing import Any

import yaml

from tests.training_data import training_file

Json = dict[str, Any]

BOTTOM: Json = {"name": "bottom", "fusion": {"kind": "shared_bottom", "levels": [8]}}
EXPERTS = [{"experts_per_task": 1, "shared_experts": 1}, {"experts_per_task": 2, "shared_experts": 0}]
PLE: Json = {
    "name": "ple",
    "fusion": {"kind": "ple", "levels": [4], "experts_per_task": 1, "shared_experts": 1},
    "space": {"network.fusion": EXPERTS},
}
RATE = "optimizer.dense.learning_rate"


def experiment_file(folder: Path, **changes: Any) -> Path:
    """An experiment file in `folder`. `changes` replace top-level keys."""
    config = training_file(folder, epochs=1)
    content = {
        "name": "tiny",
        "datasets": [{"name": "clips", "config": str(config)}],
        "networks": [BOTTOM, PLE],
        "seeds": 1,
        "baseline": "bottom",
        "output": str(folder / "out"),
        "replicates": 100,
        "metrics": ["auc"],
        "search": {"trials": 2, "seeds": 2},
        **changes,
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path
