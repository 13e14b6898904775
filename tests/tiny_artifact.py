"""Publish a small artifact with random weights: `python -m tests.tiny_artifact --models DIR` -> `DIR/tiny/1/`.

For the check that the service runs without torchrec (tests/serve_only.sh). Every kind of feature is in it, tables are
shared, one task is a regression. The expected answers of the golden request come from the eager module, what is
published is TorchScript: the scorer compares the two when it loads the version.
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.artifact import FITTED, GOLDEN, RANKER, REFERENCE, publish
from model.features import EncodedBlock, FeatureEncoder, FittedFeatures, NumberStep, TargetScale
from model.fusion.adatt import AdaTTConfig
from model.ranker import Network, NetworkConfig, ScoringModule
from model.schema import FeedSchema, NumberFeature

SEED = 7
# fp32 sums in another order, between this machine and the one that loads: some 1e-6 of a probability.
TOLERANCE = 1e-4

SCHEMA = FeedSchema.from_mapping(
    {
        "name": "tiny",
        "features": [
            {"name": "user_id", "side": "user", "kind": "id", "buckets": 50, "dim": 8},
            {
                "name": "history",
                "side": "user",
                "kind": "id_list",
                "table": "video_id",
                "max_length": 5,
                "pooling": "mean",
            },
            {"name": "tab", "side": "context", "kind": "id", "vocabulary": [0, 1, 2], "dim": 4},
            {"name": "video_id", "side": "candidate", "kind": "id", "dtype": "string", "buckets": 100, "dim": 8},
            {"name": "duration_ms", "side": "candidate", "kind": "number", "transform": "standardise", "missing": 1.0},
            {"name": "position", "side": "training_only", "kind": "number", "serving_value": 0},
        ],
        "tasks": [
            {"name": "click", "kind": "binary", "label": "is_click"},
            {"name": "play_time", "kind": "regression", "label": "play_time_ms", "transform": "log1p"},
        ],
    },
    "tests/tiny_artifact.py",
)
REQUEST: dict[str, Any] = {
    "user": {"user_id": 17, "history": ["v3", "v9"], "tab": 1},
    "candidates": {
        "id": ["a", "b", "c", "d"],
        "features": {"video_id": ["v3", "v4", None, "v99"], "duration_ms": [0.5, None, 2.0, -1.0]},
    },
}


def _tensors(block: EncodedBlock) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in block]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", type=Path, required=True, help="folder to publish into")
    models: Path = parser.parse_args().models

    torch.manual_seed(SEED)
    fitted = FittedFeatures(
        numbers={"duration_ms": (NumberStep(transform="standardise", mean=1.0, scale=2.0),)},
        targets={"play_time": TargetScale(mean=8.0, scale=1.0)},
    )
    encoder = FeatureEncoder(SCHEMA, fitted)
    dims = {name: table.dim for table in SCHEMA.tables for name in table.features}
    tables = {table.name: torch.randn(encoder.rows_of_table[table.name], table.dim) for table in SCHEMA.tables}
    config = NetworkConfig(fusion=AdaTTConfig(kind="adatt_sp", levels=(16, 8), experts_per_task=2), tower=(8,))
    num_numbers = sum(isinstance(feature, NumberFeature) for feature in SCHEMA.features)
    network = Network(config, sum(dims.values()) + num_numbers, len(SCHEMA.tasks))
    module = ScoringModule(SCHEMA, fitted, network, tables).eval()

    candidates = REQUEST["candidates"]
    rows = len(candidates["id"])
    request = encoder.columns("request", {name: [value] for name, value in REQUEST["user"].items()}, 1)
    columns = encoder.columns("candidate", candidates["features"], rows)
    with torch.inference_mode():
        answers_NT = module(
            *_tensors(encoder.encode("request", request, 1, as_served=True).block),
            *_tensors(encoder.encode("candidate", columns, rows, as_served=True).block),
        )
    expected = {task.name: answers_NT[:, number].tolist() for number, task in enumerate(SCHEMA.tasks)}

    def write_files(folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is the format on purpose
            torch.jit.script(module).save(str(folder / RANKER))  # type: ignore[no-untyped-call]
        golden = {"tolerance": TOLERANCE, "requests": [{**REQUEST, "expected": expected}]}
        reference = {name: {"edges": [0.0, 1.0], "counts": [rows]} for name in expected}
        (folder / FITTED).write_text(fitted.model_dump_json())
        (folder / GOLDEN).write_text(json.dumps(golden))
        (folder / REFERENCE).write_text(json.dumps(reference))

    published = publish(
        models,
        SCHEMA.name,
        write_files,
        schema=SCHEMA,
        network=config.model_dump(mode="json"),
        training={"seed": SEED, "rows": 0},
        metrics={},
        libraries={"torch": torch.__version__},
    )
    print(f"published {published}")


if __name__ == "__main__":
    main()
