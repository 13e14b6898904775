"""GET /v1/play/models: what the page has to know of the models before it can ask for a ranking.

In: the store. Out: by model the versions that are loaded, value models with what they say, policies, outputs, features
and a golden request. That has rows of a training log.
"""

from collections.abc import Mapping
from typing import Any

from service.models.store import ModelStore
from service.models.version import ServedModel
from service.rank.openapi import example_request

PATH = "/v1/play/models"


def shown_models(store: ModelStore) -> list[dict[str, Any]]:
    """Every model that is served."""
    return [_shown(store, name) for name in store.served()]


def _shown(store: ModelStore, name: str) -> dict[str, Any]:
    serving = store.serving(name)
    labels: dict[str, list[str]] = {}
    for label, version in serving.labels.versions().items():
        labels.setdefault(str(version), []).append(label)
    newest_first = sorted(serving.versions.values(), key=lambda one: -one.scorer.manifest.version)
    return {
        "name": name,
        "default_version": serving.default.scorer.version,
        "versions": [_version(model, labels.get(model.scorer.version, [])) for model in newest_first],
        "request": example_request(serving.default),
        "value_models_sha256": store.entry(name)["value_models_sha256"],
    }


def _version(model: ServedModel, labels: list[str]) -> dict[str, Any]:
    schema, domain = model.scorer.schema, model.scorer.domain
    features: dict[str, Mapping[str, Any]] = {}
    for block in ("request", "candidate"):
        for feature in schema.requested(block):
            told = feature.json_schema(model.scorer.encoder.dtype(feature.name))
            features[feature.name] = {"block": block, "description": told["description"]}
    value_models = model.value_models
    return {
        "version": model.scorer.version,
        "labels": labels,
        "outputs": domain.uppers,
        "features": features,
        "value_models": {
            name: {"version": value_models[name].version, **value_models[name].definition.model_dump(mode="json")}
            for name in value_models.names
        },
        "policies": [] if model.policies is None else model.policies.names,
    }
