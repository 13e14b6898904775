"""A small published artifact with random weights, for tests that serve or read one.

In: a models folder, a name, a seed. Out: `<models>/<name>/<version>/`, made of the same parts as a trained one: real
files, real checksums, golden requests that the eager network answered. Its scores mean nothing. Two seeds differ.
"""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.artifact.artifact import CALIBRATION, FITTED, GOLDEN, RANKER, REFERENCE, REFERENCE_FEATURES, publish
from model.artifact.module_inputs import ModuleInputs
from model.artifact.reference import of_features
from model.artifact.table_files import StackedTables
from model.calibration import Calibration, calibrated
from model.embeddings.histories import activation_units
from model.export.scoring_module import ScoringModule, to_torchscript, write_torchscript
from model.features.encoder import FeatureEncoder, FittedFeatures, NumberStep
from model.features.kinds import NumberFeature
from model.ranker import Network, NetworkConfig
from model.schema import FeedSchema
from model.tasks.task import TargetScale

TINY_SCHEMA: dict[str, Any] = {
    "name": "tiny",
    "features": [
        {"name": "user_id", "side": "user", "kind": "id", "buckets": 50, "dim": 8},
        {"name": "country", "side": "user", "kind": "id", "dtype": "string", "vocabulary": ["de", "fr"], "dim": 4},
        {"name": "history", "side": "user", "kind": "id_list", "table": "video_id", "max_length": 3, "pooling": "mean"},
        {"name": "age_days", "side": "user", "kind": "number", "transform": ["log1p", "standardise"], "missing": 0},
        {"name": "tab", "side": "context", "kind": "id", "vocabulary": [0, 1, 2], "dim": 4},
        {"name": "video_id", "side": "candidate", "kind": "id", "buckets": 100, "dim": 8},
        {"name": "tag", "side": "candidate", "kind": "id", "dtype": "string", "buckets": 20, "dim": 4},
        {"name": "topics", "side": "candidate", "kind": "id_list", "vocabulary": [7, 8, 9], "dim": 4, "max_length": 4},
        {"name": "duration_ms", "side": "candidate", "kind": "number", "transform": "log1p", "missing": 0},
        {"name": "position", "side": "training_only", "kind": "number", "serving_value": 0},
    ],
    "tasks": [
        {"name": "click", "kind": "binary", "label": "is_click"},
        {"name": "like", "kind": "binary", "label": "is_like"},
        {"name": "play_time", "kind": "regression", "label": "play_time_ms", "transform": "log1p"},
    ],
}
TINY_NETWORK: dict[str, Any] = {
    "fusion": {"kind": "adatt_sp", "levels": [8, 8], "experts_per_task": 2},
    "tower": [8],
}
TINY_REQUEST: dict[str, Any] = {
    "user": {"user_id": 17, "country": "fr", "history": [3, 9, 4, 5], "age_days": 12.5, "tab": 1},
    "candidates": {
        "id": ["a", "b", "c", "d"],
        "features": {
            "video_id": [3, 9, None, -4],
            "tag": ["x", "y", "x", None],
            "topics": [[7], [], None, [8, 9, 1000]],
            "duration_ms": [8000, 31000.5, None, 0],
        },
    },
}


def tiny_schema() -> FeedSchema:
    """A schema with every kind, side and dtype."""
    return FeedSchema.from_mapping(TINY_SCHEMA, "tests/artifacts.py")


def attention_schema(kind: str = "dot") -> FeedSchema:
    """The same, whose history is weighed by each candidate."""
    content = copy.deepcopy(TINY_SCHEMA)
    (history,) = (feature for feature in content["features"] if feature["name"] == "history")
    history |= {"pooling": "attention", "attention": kind}
    return FeedSchema.from_mapping(content, "tests/artifacts.py")


def publish_artifact(
    models: Path,
    name: str = "tiny",
    *,
    seed: int = 0,
    schema: FeedSchema | None = None,
    network: Mapping[str, Any] = TINY_NETWORK,
    request: Mapping[str, Any] = TINY_REQUEST,
    spoil: float = 0.0,
    user: str | None = None,
    fill: Callable[[Network, dict[str, Tensor]], None] | None = None,
    calibration: Mapping[str, Any] | None = None,
) -> Path:
    """Publish the next version of `name` with weights drawn from `seed`. `request` becomes its golden request.
    `spoil` is added to the expected answers, so that the golden check of a reader fails. `user` is the feature that
    names users. `fill` sees the network and its tables before they are exported, and may write to them. `calibration`
    are maps by task."""
    schema = schema or tiny_schema()
    fitted = _fitted(schema)
    encoder = FeatureEncoder(schema, fitted)
    dense, tables = _weights(schema, encoder, NetworkConfig.from_mapping(network, "network"), seed)
    if fill is not None:
        fill(dense, tables)
    stacked = StackedTables.of(tables)
    module = ScoringModule(schema, fitted, dense, stacked.starts).eval()
    inputs = ModuleInputs(schema, module, stacked.stacked_RW)
    rows = len(request["candidates"]["id"])
    columns = encoder.columns("request", {key: [value] for key, value in request["user"].items()}, 1)
    blocks = [
        encoder.encode("request", columns, 1, as_served=True).block,
        encoder.encode(
            "candidate", encoder.columns("candidate", request["candidates"]["features"], rows), rows, as_served=True
        ).block,
    ]
    with torch.inference_mode():
        answers_NO = module(inputs.candidate_rows(blocks[1], blocks[0]), inputs.request_sums(blocks[0])).numpy()
    maps = Calibration.from_mapping({"tasks": calibration or {}}, CALIBRATION)
    answers_NO = calibrated(answers_NO, maps.bound(schema))
    expected = {output: (answers_NO[:, t] + spoil).tolist() for t, output in enumerate(schema.outputs)}
    reference = {
        output: {"edges": [0.0, 0.5, 1.0], "counts": [1, 1], "mean": 0.25 * (t + 1)}
        for t, output in enumerate(schema.outputs)
    }
    features = of_features(schema, {"request": blocks[0], "candidate": blocks[1]})
    golden = {"tolerance": 1e-4, "requests": [{**request, "expected": expected}]}

    def write_files(folder: Path) -> None:
        StackedTables.written(tables, folder)
        write_torchscript(to_torchscript(module), folder / RANKER)
        for file, content in (
            (FITTED, fitted.model_dump(mode="json")),
            (GOLDEN, golden),
            (REFERENCE, reference),
            (REFERENCE_FEATURES, features.model_dump(mode="json")),
        ):
            (folder / file).write_text(json.dumps(content))
        if maps.tasks:
            (folder / CALIBRATION).write_text(json.dumps(maps.model_dump(mode="json")))

    path = publish(
        models,
        name,
        write_files,
        schema=schema,
        user=user,
        network=dict(network),
        training={"seed": seed},
        metrics={"test": {"click": {"auc": 0.5}}},
        libraries={"torch": torch.__version__},
    )
    return writable(path)


def publish_artifacts(models: Path, count: int) -> Path:
    """The first versions of `tiny`, each with weights of its own. Returns the models folder."""
    for seed in range(count):
        publish_artifact(models, seed=seed)
    return models


def writable(version: Path) -> Path:
    """A published folder whose files a test may damage, though it does not run as root."""
    for file in version.iterdir():
        file.chmod(0o644)
    return version


def _fitted(schema: FeedSchema) -> FittedFeatures:
    return FittedFeatures(
        numbers={
            feature.name: tuple(NumberStep(transform=transform, mean=1.0, scale=2.0) for transform in feature.transform)
            for feature in schema.features
            if isinstance(feature, NumberFeature)
        },
        targets={
            task.name: TargetScale(mean=2.0, scale=1.5, upper=1e4) for task in schema.tasks if task.kind == "regression"
        },
    )


def _weights(
    schema: FeedSchema, encoder: FeatureEncoder, network: NetworkConfig, seed: int
) -> tuple[Network, dict[str, torch.Tensor]]:
    dims = {name: table.dim for table in schema.tables for name in table.features}
    width = sum(1 if isinstance(feature, NumberFeature) else dims[feature.name] for feature in schema.features)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tables = {table.name: torch.randn(encoder.rows_of_table[table.name], table.dim) for table in schema.tables}
        return Network(network, width, schema.output_counts, schema.given, units=activation_units(schema, 1)), tables
