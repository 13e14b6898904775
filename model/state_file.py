"""The file of users' state, state.yaml: which values a store keeps of each user, and what events add to them.

In: `<models>/<name>/state.yaml` and a version's schema. Out: a validated, frozen `StateFile`. The service takes
features of a request's user from the store that the file describes. Every fault is a ValueError that names the place
and the rule.
"""

import hashlib
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, model_validator

from model.features.kinds import Feature
from model.features.kinds.columns import Dtype
from model.join_file import Duration, EventType
from model.schema import FeedSchema
from model.strict_yaml import Name, StrictModel, did_you_mean, parse_yaml

FILE_NAME = "state.yaml"
# What an event has besides features: the candidate's id, and its number.
ID, VALUE = "id", "value"
_MOST_ENTRIES = 1_000


class Append(StrictModel):
    """A history: of each event of a type the feature `value`, or `id` for the candidate's. The newest `keep` stay."""

    event: EventType
    value: Name
    keep: Annotated[int, Field(ge=1, le=_MOST_ENTRIES)]


class StateFile(StrictModel):
    """The state that a store keeps of a model's users. `key` names them. Users that nothing is written of for `ttl` are
    forgotten."""

    key: Name
    fields: tuple[Name, ...] = ()
    append: dict[Name, Append] = Field(default_factory=dict)
    ttl: Duration = timedelta(days=90)

    @model_validator(mode="after")
    def _each_once(self) -> "StateFile":
        names = [self.key, *self.fields, *self.append]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)}: given twice among key, fields and append; each name has one place")
        if len(names) == 1:
            raise ValueError("fields and append are both empty; name what the store keeps")
        if not self.ttl:
            raise ValueError("ttl: expected a time above 0")
        return self

    @property
    def names(self) -> frozenset[str]:
        """All that the store keeps of a user."""
        return frozenset({*self.fields, *self.append})

    @property
    def adding_types(self) -> frozenset[str]:
        """The types of events that add to a history, each of which needs an `event_id`."""
        return frozenset(append.event for append in self.append.values())

    @property
    def version(self) -> str:
        """The first 8 hexadecimal digits of the sha256 of what the file says."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]

    @classmethod
    def fitting(cls, content: bytes, place: str, schema: FeedSchema) -> "StateFile | None":
        """The content of a file for a model version, None of `{}`, which takes a file back. Raises ValueError where it
        does not fit the version's schema."""
        document = parse_yaml(content, place)
        if document == {}:
            return None
        file = cls.from_mapping(document, place)
        faults = [*_key_faults(file.key, schema), *_field_faults(file.fields, schema)]
        faults += [fault for name, append in file.append.items() for fault in _append_faults(name, append, schema)]
        if faults:
            raise ValueError(f"{place}: {'; '.join(faults)}")
        return file


def _key_faults(key: str, schema: FeedSchema) -> list[str]:
    feature = _features(schema).get(key)
    if feature is None:
        return []
    if key not in _requested(schema) or not feature.has_ids or feature.is_list:
        return [f"key: '{key}' is a feature of the schema, and not a single id of user or context"]
    return []


def _field_faults(fields: tuple[str, ...], schema: FeedSchema) -> list[str]:
    requested = _requested(schema)
    hint = f"features of user and context: {', '.join(requested) or 'none'}"
    return [
        f"fields: '{name}' is no feature of user or context; {did_you_mean(name, list(requested), hint)}"
        for name in fields
        if name not in requested
    ]


def _append_faults(name: str, append: Append, schema: FeedSchema) -> list[str]:
    features, place = _features(schema), f"append.{name}"
    source = features.get(append.value)
    if append.value not in (ID, VALUE) and (source is None or source.is_list or source.side == "training_only"):
        known = [ID, VALUE, *(f.name for f in features.values() if not f.is_list and f.side != "training_only")]
        hint = did_you_mean(append.value, known, f"an event has: {', '.join(known)}")
        return [f"{place}.value: '{append.value}' is no single value of an event; {hint}"]
    feature = features.get(name)
    if feature is None:  # kept for policies, which know the names of the file
        return []
    if name not in _requested(schema) or not feature.is_list or not feature.has_ids:
        return [f"{place}: '{name}' is a feature of the schema, and not a list of ids of user or context"]
    dtype, given = _dtype(schema, name), _source_dtype(schema, append.value)
    if given is None or (dtype == "string" and given == "int64"):
        kind = "numbers" if given is None else "integers"
        return [f"{place}: the ids of '{name}' are of dtype {dtype}, and {append.value} gives {kind}"]
    return []


def _features(schema: FeedSchema) -> dict[str, Feature]:
    return {feature.name: feature for feature in schema.features}


def _requested(schema: FeedSchema) -> dict[str, Feature]:
    return {feature.name: feature for feature in schema.requested("request")}


def _dtype(schema: FeedSchema, name: str) -> Dtype | None:
    return next((table.dtype for table in schema.tables if name in table.features), None)


def _source_dtype(schema: FeedSchema, value: str) -> Literal["int64", "string"] | None:
    return "string" if value == ID else _dtype(schema, value)
