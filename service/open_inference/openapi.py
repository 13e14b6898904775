"""The infer routes of the Open Inference Protocol in OpenAPI: written by hand, as openapi.py is and for its reason."""

from itertools import chain
from typing import Any

from model.scorer.scorer import Scorer
from model.value_models.value_model import DEFAULT
from service.metrics.metrics import INFER
from service.open_inference.infer import HEADER_LENGTH, input_types
from service.open_inference.routes import INFER_VERSION
from service.rank.openapi import (
    ANSWERED_ID,
    DEADLINE_HEADER,
    REFUSALS,
    REQUEST_ID_HEADER,
    SECURITY,
    reference,
    refusals,
)

EXAMPLE_ANSWER: dict[str, Any] = {
    "model_name": "kuairand",
    "model_version": "3",
    "id": "r-1",
    "parameters": {"value_model": "default", "value_model_version": "9f2c01ab"},
    "outputs": [
        {"name": "click", "datatype": "FP32", "shape": [2], "data": [0.31, 0.62]},
        {"name": "score", "datatype": "FP32", "shape": [2], "data": [0.37, 0.81]},
    ],
}
_TEXT = {"type": "string"}
_PARAMETERS = {"type": "object", "additionalProperties": {}}
_SHAPE = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 1}
_DATA = {"type": "array", "items": {}, "description": "left out where binary_data_size is a parameter"}
_TENSOR = {"name": _TEXT, "shape": _SHAPE, "datatype": {**_TEXT, "enum": ["INT64", "FP32", "FP64", "BYTES"]}}


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


SCHEMAS: dict[str, Any] = {
    "InferRequest": _object(
        {
            "id": {**_TEXT, "description": "echoed"},
            "parameters": {**_PARAMETERS, "description": "value_model, binary_data_output; others are ignored"},
            "inputs": _list(
                _object({**_TENSOR, "parameters": _PARAMETERS, "data": _DATA}, ["name", "shape", "datatype"])
            ),
            "outputs": {
                **_list(_object({"name": _TEXT, "parameters": _PARAMETERS}, ["name"])),
                "description": "outputs of the model (a task, or task.class) and score; all where it is left out",
            },
        },
        ["inputs"],
    ),
    "InferAnswer": _object(
        {
            "model_name": _TEXT,
            "model_version": _TEXT,
            "id": _TEXT,
            "parameters": _object({"value_model": _TEXT, "value_model_version": _TEXT}, []),
            "outputs": {
                **_list(_object({**_TENSOR, "parameters": _PARAMETERS, "data": _DATA}, ["name", "shape", "datatype"])),
                "description": "in request order, not ranked",
            },
        },
        ["model_name", "model_version", "parameters", "outputs"],
    ),
    "InferError": _object({"error": _TEXT}, ["error"]),
}
_ERRORS = {
    "400": "malformed; the error names every faulty tensor",
    **REFUSALS,
    "415": "a Content-Encoding other than gzip and deflate",
}


def _operation(path: str) -> dict[str, Any]:
    names = [name for name in ("name", "version") if f"{{{name}}}" in path]
    return {
        "summary": "Score the candidates of one user, tensors in and tensors out (Open Inference Protocol)",
        "operationId": "infer" + ("_version" if "version" in names else ""),
        "security": SECURITY,
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names),
            {
                "name": HEADER_LENGTH,
                "in": "header",
                "description": "bytes of the JSON, where the bytes of tensors follow it",
                "schema": {"type": "integer", "minimum": 0},
            },
            DEADLINE_HEADER,
            REQUEST_ID_HEADER,
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": reference("InferRequest")},
                "application/octet-stream": {"schema": {**_TEXT, "format": "binary"}},
            },
        },
        "responses": {
            "200": {
                "description": "the scores",
                "headers": ANSWERED_ID,
                "content": {
                    "application/json": {"schema": reference("InferAnswer"), "example": EXAMPLE_ANSWER},
                    "application/octet-stream": {"schema": {**_TEXT, "format": "binary"}},
                },
            },
            **refusals(_ERRORS, "application/json", "InferError"),
        },
    }


def example_inference(scorer: Scorer) -> dict[str, Any]:
    """The model's own golden request as tensors."""
    golden = scorer.example
    user = {name: [value] for name, value in golden["user"].items()}
    inputs: list[dict[str, Any]] = []
    for block, columns in (("request", user), ("candidate", golden["candidates"]["features"])):
        for feature, types in input_types(scorer.encoder, block).items():  # type: ignore[arg-type]
            if feature in columns:
                parts = [columns[feature]]
                if len(types) == 2:
                    lists = [values or [] for values in columns[feature]]
                    parts = [list(chain.from_iterable(lists)), list(map(len, lists))]
                inputs += [
                    {"name": one.name, "shape": [len(data)], "datatype": one.datatype, "data": data}
                    for one, data in zip(types, parts, strict=True)
                ]
    return {"id": "r-1", "parameters": {"value_model": DEFAULT}, "inputs": inputs}


def with_infer(document: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI document with the infer routes added."""
    for path in (INFER, INFER_VERSION):
        document.setdefault("paths", {})[path] = {"post": _operation(path)}
    document.setdefault("components", {}).setdefault("schemas", {}).update(SCHEMAS)
    return document
