"""/openapi.json: what FastAPI says of the routes, the scoring routes written by hand, keys and refusals of all of them.

In: the document that FastAPI makes, and the models that are served. Out: a document with the schemas of the
served models' requests, whose examples are their own golden requests, so that "Try it out" in /docs answers. Golden
requests have rows of a training log. Where keys are configured, a reader without a scoring key gets one schema for any
model, and an example without any value.
"""

import copy
import re
from collections.abc import Mapping
from typing import Any

from model.value_models.value_model import DEFAULT
from service.base.errors import MEDIA_TYPE
from service.events.openapi import with_events
from service.http.keys import needed_for
from service.metrics.metrics import BATCH, EVENTS, INFER, RANK
from service.models.admin import PATH as LABELS
from service.models.admin import SCHEMAS as LABELS_SCHEMAS
from service.models.value_model_route import PATH as VALUE_MODEL
from service.models.version import ServedModel
from service.open_inference.openapi import example_inference, with_infer
from service.open_inference.routes import INFER_VERSION
from service.rank.openapi import (
    COMPONENT,
    KEY_SCHEME,
    SECURITY,
    example_answer,
    example_request,
    refusals,
    with_rank,
)
from service.rank.request_schema import ROOT, request_schemas, wire_schemas
from service.rank.schema_route import PATH as SCHEMA
from service.rank.wire import RankRequest

_ADMIN = "/v1/admin"
_GROUPS = {
    "Ranking": (RANK, BATCH),
    "Events": (EVENTS,),
    "Models": ("/v1/models",),
    "Admin": (_ADMIN,),
    "Open Inference Protocol": ("/v2",),
}
_OPERATIONS = "Operations"
# Of every model, with any features: candidates take defaults.
_ANY_REQUEST: dict[str, Any] = {"user": {}, "candidates": {"id": ["a", "b"], "features": {}}}
# Of a model's name, in that of a type.
_NO_LETTER = re.compile(r"[^A-Za-z0-9]")
_SCOPES = "\n\nWhere keys are configured, needs one with the scope `{}`: `Authorization: Bearer KEY`."

_REFUSED_CONTENT = {
    "400": "not JSON",
    "408": "the body took too long to arrive",
    "413": "the body is over its limit",
    "415": "the body is compressed",
    "422": "wrong content; `errors` names every fault",
}
# By the scopes under which something is written, which are off without keys: further refusals.
_WRITTEN = {
    "admin": {
        "409": "a version that cannot be served",
        "429": "busy: try again after the seconds of Retry-After",
        "503": "not ready, or draining",
    },
    "state": {
        "404": "no such model, no state of its users, or nothing of this user",
        "503": "the state store fails, is full or is too slow: try again after the seconds of Retry-After",
    },
}


def api_document(routes: dict[str, Any]) -> dict[str, Any]:
    """The document without examples, of FastAPI's one. Scoring comes first."""
    document = with_events(with_infer(with_rank(routes)))
    document["components"]["schemas"] |= LABELS_SCHEMAS
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _complete(path, operation)
    order = {group: number for number, group in enumerate((*_GROUPS, _OPERATIONS))}
    document["paths"] = dict(sorted(document["paths"].items(), key=lambda entry: order[_group(entry[0])]))
    document["tags"] = [{"name": group} for group in order]
    for unused in ("HTTPValidationError", "ValidationError"):  # what FastAPI would answer. A Problem comes instead
        document["components"]["schemas"].pop(unused, None)
    return document


def with_models(document: dict[str, Any], models: Mapping[str, ServedModel], max_candidates: int) -> dict[str, Any]:
    """The document with schemas and examples for the models that are shown, those that are served or none."""
    document = copy.deepcopy(document)
    paths = document["paths"]
    requests = {name: example_request(model) for name, model in models.items()}
    examples = requests or {"any": _ANY_REQUEST}
    _give_examples(paths[RANK]["post"], examples)
    _give_examples(paths[BATCH]["post"], {"each": {"requests": list(examples.values())}})
    if not models:
        return document
    schemas = document["components"]["schemas"]
    for of_any_model in wire_schemas([RankRequest], COMPONENT):
        del schemas[of_any_model]
    of_models, request = _schemas_of(models, max_candidates)
    schemas |= of_models
    paths[RANK]["post"]["requestBody"]["content"]["application/json"]["schema"] = request
    schemas["BatchRequest"]["properties"]["requests"]["items"] = request
    default = next(iter(models.values()))
    answer = paths[RANK]["post"]["responses"]["200"]["content"]["application/json"]
    answer["examples"]["plain"] = {"value": example_answer(default)}
    for path in (INFER, INFER_VERSION):
        _give_examples(paths[path]["post"], {name: example_inference(model.scorer) for name, model in models.items()})
    names = {"name": default.name, "version": default.scorer.version, "key": "17", "entry": DEFAULT}
    for path, operations in paths.items():
        for operation in operations.values():
            if path == LABELS:
                _give_examples(operation, {"pinned": {"stable": default.scorer.version}})
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["example"] = names[parameter["name"]]
    return document


def _schemas_of(models: Mapping[str, ServedModel], max_candidates: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schemas of models' requests and of their parts, by name, and the one of a request to any of them."""
    schemas: dict[str, Any] = {}
    requests = []
    for name, model in models.items():
        suffix = base = _NO_LETTER.sub("_", name)
        while f"{ROOT}_{suffix}" in schemas:  # names that differ in a dot alone
            suffix += f"_of_{base}"
        reference = COMPONENT.replace("{name}", "{name}_" + suffix)
        schemas |= {f"{key}_{suffix}": one for key, one in request_schemas(model, max_candidates, reference).items()}
        requests.append({"$ref": reference.format(name=ROOT)})
    return schemas, {"anyOf": requests} if len(requests) > 1 else requests[0]


def _complete(path: str, operation: dict[str, Any]) -> None:
    """Add the group, the key and the refusals of a route."""
    scope = needed_for(path)
    operation["tags"] = [_group(path)]
    if scope is not None:
        operation["security"] = SECURITY if scope not in _WRITTEN else [{KEY_SCHEME: []}]
        operation["description"] = (operation.get("description", "") + _SCOPES.format(scope)).strip()
    if path in (RANK, BATCH, EVENTS, INFER, INFER_VERSION):
        return
    described = {"500": "an error of the service, not of the request"}
    if scope is not None:
        described |= {"401": "no key, or a wrong one", "403": f"a key without the scope `{scope}`"}
    if "{" in path:
        described |= {"404": "no such model or version"}
    if path.endswith(("/ready", "/readyz")) or path.startswith("/v2/models") or path == SCHEMA:
        described |= {"503": "not ready, or draining"}
    if scope in _WRITTEN:
        described |= {**_REFUSED_CONTENT, "403": f"a key without the scope `{scope}`, or no keys are configured"}
        described |= _WRITTEN[scope]
    if path == VALUE_MODEL:
        described |= {
            "409": "the models folder is read-only here",
            "412": "value_models.yaml is not as it was seen",
            "428": "neither If-Match nor If-None-Match",
        }
    kind = ("application/json", "InferError") if path.startswith("/v2") else (MEDIA_TYPE, "Problem")
    answers = {status: answer for status, answer in operation["responses"].items() if int(status) < 400}
    operation["responses"] = {**answers, **refusals(described, *kind)}


def _group(path: str) -> str:
    return next((group for group, starts in _GROUPS.items() if path.startswith(starts)), _OPERATIONS)


def _give_examples(operation: dict[str, Any], examples: Mapping[str, Any]) -> None:
    """Replace the examples of an operation's JSON body, if it has one."""
    given: dict[str, Any] = {"examples": {name: {"value": value} for name, value in examples.items()}}
    if len(examples) == 1:
        given = {"example": next(iter(examples.values()))}
    contents = operation.get("requestBody", {}).get("content", {})
    for kind in [kind for kind in contents if kind.endswith("json")]:
        contents[kind] = {"schema": contents[kind]["schema"], **given}
