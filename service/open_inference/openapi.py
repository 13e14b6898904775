"""The infer routes of the Open Inference Protocol in OpenAPI, their schemas those of service/open_inference/wire.py."""

from itertools import chain
from typing import Any

from model.scorer.scorer import Scorer
from model.value_models.value_model import DEFAULT
from service.metrics.metrics import INFER
from service.open_inference.infer import HEADER_LENGTH
from service.open_inference.plan import input_types
from service.open_inference.routes import INFER_VERSION
from service.open_inference.wire import InferAnswer, InferError, InferRequest
from service.rank.openapi import (
    ANSWERED_ID,
    DEADLINE_HEADER,
    REFUSALS,
    REQUEST_ID_HEADER,
    SECURITY,
    reference,
    refusals,
    schemas_of,
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
SCHEMAS = schemas_of(InferRequest, InferAnswer, InferError)
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
