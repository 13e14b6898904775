"""The scoring route in OpenAPI: its request, its answers and examples, so that /docs can be read and tried.

The route itself reads bytes (service/rank/question.py) and has no body model for FastAPI to describe. Its schemas come
from service/rank/wire.py. The operation and its examples are written here, and a test compares them with real answers.

Shapes: N candidates, O outputs.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from model.value_models.value_model import DEFAULT
from service.base.errors import MEDIA_TYPE
from service.base.ranking import ranking
from service.models.version import ServedModel
from service.rank.request_schema import ROOT, wire_schemas
from service.rank.wire import BatchRequest, Problem, RankAnswer, RankRequest

# How a schema of the document is referred to.
COMPONENT = "#/components/schemas/{name}"
EXAMPLE_ANSWER = {
    "request_id": "r-1",
    "model": "kuairand",
    "model_version": "3",
    "value_model": "default",
    "value_model_version": "9f2c01ab",
    "candidates": {"id": ["v2", "v1"], "score": [0.81, 0.37], "tasks": {"click": [0.62, 0.31], "like": [0.05, 0.01]}},
}
EXAMPLE_EXPLAINED = {
    **EXAMPLE_ANSWER,
    "explain": {
        "contributions": {"click": [0.62, 0.31], "like": [0.19, 0.06]},
        "expert_weights": [
            {
                "units": ["click", "like"],
                "experts": ["click.1", "like.1"],
                "weights": [[[0.9, 0.1], [0.4, 0.6]], [[0.7, 0.3], [0.2, 0.8]]],
            }
        ],
        "inputs": {"missing": {"duration_ms": 1}, "unknown": {}, "cut": {"history": 1}},
    },
}


def schemas_of(*types: type) -> dict[str, Any]:
    """The schemas of msgspec types, and of the types that they have parts of, by name."""
    return wire_schemas(types, COMPONENT)


SCHEMAS = schemas_of(BatchRequest, RankRequest, RankAnswer, Problem)

# Refusals of every route that scores.
REFUSALS = {
    "401": "no key, or a wrong one, where keys are configured",
    "403": "a key without the scope `score`",
    "404": "no such model or version",
    "408": "the body took too long to arrive",
    "413": "body or candidates over the limit",
    "415": "a Content-Encoding that is not read; gzip and deflate are",
    "429": "busy: try again after the seconds of Retry-After",
    "500": "scores not finite",
    "503": "not ready or draining",
    "504": "the deadline passed",
}
_RETRY_AFTER = {"description": "seconds after which to try again", "schema": {"type": "integer", "minimum": 1}}
_CHALLENGE = {"description": "how to send a key", "schema": {"type": "string"}}
ANSWERED_ID: dict[str, Any] = {"X-Request-Id": {"description": "the request's id", "schema": {"type": "string"}}}
_HEADERS: dict[str, dict[str, Any]] = {
    "401": {"WWW-Authenticate": _CHALLENGE},
    "415": {"Accept-Encoding": {"description": "encodings that are read", "schema": {"type": "string"}}},
    "429": {"Retry-After": _RETRY_AFTER},
    "503": {"Retry-After": _RETRY_AFTER},
}
# A key, or none: which of the two a service wants is its configuration.
KEY_SCHEME = "apiKey"
SECURITY: list[dict[str, list[str]]] = [{KEY_SCHEME: []}, {}]
_PROBLEMS = {"400": "not JSON", **REFUSALS, "422": "wrong content; `errors` names every fault"}


def reference(name: str) -> dict[str, str]:
    """A schema of the document, by its name."""
    return {"$ref": COMPONENT.format(name=name)}


def refusals(descriptions: Mapping[str, str], media_type: str, schema: str) -> dict[str, Any]:
    """The responses that refuse, by status, each with the headers that it carries."""
    return {
        status: {
            "description": what,
            "content": {media_type: {"schema": reference(schema)}},
            "headers": {**ANSWERED_ID, **_HEADERS.get(status, {})},
        }
        for status, what in sorted(descriptions.items())
    }


DEADLINE_HEADER: dict[str, Any] = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "description": "milliseconds after which the answer is of no use: 504 instead",
    "schema": {"type": "integer", "minimum": 1},
}
REQUEST_ID_HEADER: dict[str, Any] = {
    "name": "X-Request-Id",
    "in": "header",
    "description": "the request's id where its body gives none: 1 to 128 printable ASCII characters; another one is "
    "replaced by a random id. Every answer has the id in a header of this name",
    "schema": {"type": "string", "maxLength": 128},
}
RANK_OPERATION: dict[str, Any] = {
    "summary": "Score the candidates of one user and rank them",
    "operationId": "rank",
    "security": SECURITY,
    "parameters": [DEADLINE_HEADER, REQUEST_ID_HEADER],
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": reference("RankRequest")}},
    },
    "responses": {
        "200": {
            "description": "the ranked candidates",
            "headers": ANSWERED_ID,
            "content": {
                "application/json": {
                    "schema": reference("RankAnswer"),
                    "examples": {"plain": {"value": EXAMPLE_ANSWER}, "explained": {"value": EXAMPLE_EXPLAINED}},
                }
            },
        },
        **refusals(_PROBLEMS, MEDIA_TYPE, "Problem"),
    },
}


_BATCH_PROBLEMS = {
    **{status: what for status, what in _PROBLEMS.items() if status != "404"},
    "413": "body, requests or their candidates together over the limit",
    "422": "wrong content of the whole, or a request id given twice; `errors` names every fault",
    "500": "an error of the service, not of the requests",
}
_ANSWERS = {"type": "array", "items": {"anyOf": [reference("RankAnswer"), reference("Problem")]}}
SCHEMAS["BatchAnswer"] = {
    "description": "An answer or a problem, with its `status`, for each request in their order.",
    "type": "object",
    "properties": {"answers": _ANSWERS},
    "required": ["answers"],
}
SCHEMAS["BatchRequest"]["properties"]["requests"]["items"] = reference(ROOT)
BATCH_OPERATION: dict[str, Any] = {
    "summary": "Score the candidates of several users, each as a request of its own",
    "description": "Answers 200 whatever becomes of a request: its problem stands in the place of its answer. "
    "Deadline, size and admission are those of the whole.",
    "operationId": "rank_batch",
    "security": SECURITY,
    "parameters": [DEADLINE_HEADER, {**REQUEST_ID_HEADER, "description": "the id of the batch, in its log lines"}],
    "requestBody": {"required": True, "content": {"application/json": {"schema": reference("BatchRequest")}}},
    "responses": {
        "200": {
            "description": "the answers",
            "headers": ANSWERED_ID,
            "content": {
                "application/json": {"schema": reference("BatchAnswer"), "example": {"answers": [EXAMPLE_ANSWER]}}
            },
        },
        **refusals(_BATCH_PROBLEMS, MEDIA_TYPE, "Problem"),
    },
}


def example_request(model: ServedModel) -> dict[str, Any]:
    """The model's own golden request."""
    golden = model.scorer.example
    return {"model": model.name, "user": golden["user"], "candidates": golden["candidates"]}


def example_answer(model: ServedModel) -> dict[str, Any]:
    """The model's answer to it at export, ranked by its default value model."""
    expected = model.scorer.example["expected"]
    answers_ON = np.array([expected[output] for output in model.scorer.outputs], np.float32)
    value_model = model.value_models[DEFAULT]
    score_N = value_model.score(answers_ON.T)
    order_N = ranking(score_N, None)
    ids = model.scorer.example["candidates"]["id"]
    return {
        "request_id": "r-1",
        "model": model.name,
        "model_version": model.scorer.version,
        "value_model": DEFAULT,
        "value_model_version": value_model.version,
        "candidates": {
            "id": [ids[position] for position in order_N.tolist()],
            "score": score_N[order_N].tolist(),
            "tasks": dict(zip(model.scorer.outputs, answers_ON[:, order_N].tolist(), strict=True)),
        },
    }


def with_rank(document: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI document with the scoring route and that of batches added."""
    document.setdefault("paths", {})["/v1/rank"] = {"post": RANK_OPERATION}
    document["paths"]["/v1/rank:batch"] = {"post": BATCH_OPERATION}
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(SCHEMAS)
    components.setdefault("securitySchemes", {})[KEY_SCHEME] = {
        "type": "http",
        "scheme": "bearer",
        "description": "a key of `python -m service key`, where the service has a file of keys",
    }
    return document
