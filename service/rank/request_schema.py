"""The JSON Schema (2020-12) of a model's request: the wire's types with the model's own features in them.

In: a served model version. Out: schemas by name. `RankRequest` is the request, and what it has parts of is beside it.
service/rank/wire.py says what a request is, and each kind of feature what its value is. The schema says less than the
service checks where JSON Schema has no words: docs/types.md lists that.

Shapes: N candidates.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from model.schema import Block
from model.scorer.seen_inputs import seen_inputs
from service.models.version import ServedModel
from service.rank.wire import RankRequest
from service.state.user_state import MAX_KEY_BYTES

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ROOT = "RankRequest"
_HERE = "#/$defs/{name}"
# In Python `$` lets a line break follow. In JSON Schema it does not.
_END_IN_PYTHON, _END = r"\Z", "$"
_KEY: dict[str, Any] = {
    "description": "the key of the user in the state store",
    "type": ["string", "integer", "null"],
    "minLength": 1,
    "maxLength": MAX_KEY_BYTES,
}

Schema = dict[str, Any]


def wire_schemas(types: Iterable[type], reference: str) -> dict[str, Schema]:
    """Schemas of types of the wire and of their parts, by name. `reference` is how one names another, with `{name}`."""
    schemas = msgspec.json.schema_components(tuple(types), ref_template=reference)[1]
    return {name: json_patterns(_without_titles_and_defaults(schema)) for name, schema in schemas.items()}


def request_schemas(model: ServedModel, max_candidates: int, reference: str = _HERE) -> dict[str, Schema]:
    """The schemas of a model's request, by the names that `reference` makes others refer to."""
    schemas = wire_schemas([RankRequest], reference)
    columns = {
        name: {"description": value.pop("description"), "type": "array", "items": value}
        for name, value in _values(model, "candidate").items()
    }
    user = _values(model, "request")
    if model.state is not None:
        user.setdefault(model.state.key, _KEY)
    schemas["User"] = _closed("Features of the user and of the context.", user)
    schemas["Features"] = _closed("Features of a candidate.", _values(model, "candidate"))
    schemas["FeatureColumns"] = _closed("Features of all candidates, N values each.", columns)

    request, by_columns, row = (schemas[name]["properties"] for name in (ROOT, "CandidateColumns", "CandidateRow"))
    request["user"] = {"$ref": reference.format(name="User")}
    by_columns["features"] = {"$ref": reference.format(name="FeatureColumns")}
    row["features"] = {"$ref": reference.format(name="Features")}
    for listed in (by_columns["id"], next(one for one in request["candidates"]["anyOf"] if one.get("type") == "array")):
        listed["maxItems"] = max_candidates
    if model.scorer.catalogue is None:  # nothing else describes a candidate
        for name in ("CandidateColumns", "CandidateRow"):
            schemas[name]["required"].append("features")
    request["model"]["anyOf"][0]["const"] = model.name
    _name_some(request["value_model"], model.value_models.names)
    _name_some(request["policy"], () if model.policies is None else model.policies.names)
    return schemas


def request_schema(model: ServedModel, max_candidates: int, example: Mapping[str, Any]) -> Schema:
    """The schema of a model's request as one document, with an example."""
    schemas = request_schemas(model, max_candidates)
    return {
        "$schema": DIALECT,
        "$id": f"urn:feedrank:request:{model.name}:{model.scorer.version}",
        "title": ROOT,
        **schemas.pop(ROOT),
        "examples": [example],
        "$defs": schemas,
    }


def _values(model: ServedModel, block: Block) -> dict[str, Schema]:
    """Schemas of the values of a block's features, each described by its kind and by what the version saw of it."""
    encoder, seen = model.scorer.encoder, seen_inputs(model.scorer)
    values = {}
    for feature in model.scorer.schema.requested(block):
        schema = feature.json_schema(encoder.dtype(feature.name))
        told = ". ".join(filter(None, [schema["description"], seen.get(feature.name)]))
        values[feature.name] = {**schema, "description": told}
    return values


def _closed(description: str, properties: Mapping[str, Schema]) -> Schema:
    return {
        "description": description,
        "type": "object",
        "properties": dict(properties),
        "additionalProperties": False,
    }


def _name_some(option: Schema, names: Sequence[str]) -> None:
    """Name what an option may be now. It is no rule, as files beside a version change what there is."""
    if names:
        option["description"] += f". Now there are: {', '.join(names)}"
        option["examples"] = list(names)


def _without_titles_and_defaults(schema: Schema) -> Schema:
    """A schema without what generators make more of than there is: a second name, and keys that are always there."""
    plain = {key: rule for key, rule in schema.items() if key != "title"}
    if "properties" in plain:
        properties = plain["properties"].items()
        plain["properties"] = {
            name: {key: rule for key, rule in one.items() if key != "default"} for name, one in properties
        }
    return plain


def json_patterns(schema: Any) -> Any:
    """A schema whose patterns were Python's, as JSON Schema has them."""
    if isinstance(schema, dict):
        return {
            key: value.replace(_END_IN_PYTHON, _END) if key == "pattern" else json_patterns(value)
            for key, value in schema.items()
        }
    return [json_patterns(one) for one in schema] if isinstance(schema, list) else schema
