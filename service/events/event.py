"""Events on the wire: the body of POST /v1/events -> checked events of one model or several.

In: `{"events": [{"request_id", "type", "id", ...}]}`. Out: for each model of the body its events, as structs whose
fields are those of the wire and the features of that model. A body of one model without a fault is decoded in one pass.
It decodes texts as such and checks them together: a pattern of the decoder's costs ten times what the text does. Its
structs have the features that events of the model have had so far: each one more costs whether an event has it or not.
Other bodies are read key by key, with the pattern of each. Raises Problem: 400 not JSON, 404 for a model that is not
served, 413 too many events, 422 naming every fault.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import astuple

from model.features.encoder import FeatureEncoder
from model.features.kinds.columns import ColumnErrors
from model.schema import Block
from model.strict_yaml import did_you_mean
from service.base.errors import FAULTS_SHOWN, Fault, Problem, kind_of, shown
from service.base.json_object import json_object
from service.base.record import MAX_REQUEST_ID, is_request_id
from service.rank.wire import RequestId

MAX_EVENTS = 1_000
MAX_BODY_BYTES = 2**20
_MAX_USER_BYTES = 256
_MAX_POSITION = 1_000_000

# A body without it names no model, but for a key that is escaped.
_MODEL_KEY = b'"model"'

_TYPE = r"^[a-z][a-z0-9_]{0,63}\Z"

FIELD_TYPES: dict[str, Any] = {
    "request_id": RequestId,
    "type": Annotated[str, Meta(pattern=_TYPE)],
    "id": str,
    "position": Annotated[int, Meta(ge=0, le=_MAX_POSITION)],
    "time": Annotated[datetime, Meta(tz=True)],
    "value": float,
    "event_id": RequestId,
    "user": str | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)],
    "model": str,
}
NEEDED = ("request_id", "type", "id")
# Texts with a pattern, which `_keep_patterns` checks where all events of a body are there.
_DECODED_TYPES = FIELD_TYPES | {"request_id": str, "type": str, "event_id": str}
_is_type = re.compile(_TYPE).match
# Fields of every event's struct, before the model's features.
_ORDER = (*NEEDED, *(name for name in FIELD_TYPES if name not in NEEDED))
_RULES = {
    "request_id": f"expected a string of 1 to {MAX_REQUEST_ID} printable ASCII characters, not all blank",
    "type": "expected a small letter, then small letters, digits or _, at most 64 in all",
    "id": "expected a string, the candidate's id",
    "position": f"expected an integer from 0 to {_MAX_POSITION}, the place in the answer as displayed",
    "time": "expected a time with its zone, such as 2026-11-29T20:15:03.120Z",
    "value": "expected a finite number",
    "event_id": f"expected a string of 1 to {MAX_REQUEST_ID} printable ASCII characters, not all blank",
    "user": f"expected a string of at most {_MAX_USER_BYTES} bytes, or an int64",
    "model": "expected a string",
}


class Event(msgspec.Struct):
    """An event by the fields that all models' events have. Each model has a struct of its own with its features."""

    request_id: str
    type: str
    id: str
    position: int | UnsetType = UNSET
    time: datetime | UnsetType = UNSET
    value: float | UnsetType = UNSET
    event_id: str | UnsetType = UNSET
    user: str | int | UnsetType = UNSET
    model: str | UnsetType = UNSET


class ModelEvents(NamedTuple):
    """The events of one model in a body, and the place of each in it."""

    reader: "EventReader"
    events: list[Event]
    places: Sequence[int]


class EventReader:
    """Reader of the events of one model."""

    def __init__(self, model: str, encoder: FeatureEncoder) -> None:
        self.model = model
        self.encoder = encoder
        schema = encoder.schema
        blocks: tuple[Block, ...] = ("request", "candidate")
        asked: dict[str, Block] = {feature.name: block for block in blocks for feature in schema.requested(block)}
        # A feature with the name of a field of the wire would be ambiguous.
        self._features = [
            _EventFeature(name, f"feature_{number}", block)
            for number, (name, block) in enumerate(asked.items())
            if name not in FIELD_TYPES
        ]
        # With every feature, and with those that events have had.
        self._whole = _Form.of(self._features)
        self._usual = _Form.of([])

    def decoded(self, body: bytes) -> list[Event] | None:
        """The events of a body that has no other model's. None where something is wrong with it."""
        events = self._usual.decoded(body)
        if events is None:
            events = self._whole.decoded(body)
            if events is not None:
                self._expect_features(events)
        return events

    def _expect_features(self, events: list[Event]) -> None:
        """Have the features of these events among those that are usual."""
        usual = {feature.name for feature in self._usual.features}
        self._usual = _Form.of(
            [
                feature
                for feature in self._features
                if feature.name in usual or any(getattr(event, feature.attribute) is not UNSET for event in events)
            ]
        )

    def event_of(self, document: Mapping[str, Any]) -> Event:
        """The event of a JSON object without a fault."""
        event: Event = msgspec.convert(document, self._whole.event_type)
        return event

    def key_faults(self, place: str, document: Mapping[str, Any]) -> list[Fault]:
        """Faults of the keys and values of an event, all but those of features' values."""
        faults = [Fault(f"{place}.{key}", "needed, got nothing") for key in NEEDED if key not in document]
        features = {feature.name for feature in self._features}
        for key, value in document.items():
            if len(faults) >= FAULTS_SHOWN:
                break
            if key in FIELD_TYPES:
                try:
                    msgspec.convert(value, FIELD_TYPES[key])
                except msgspec.ValidationError:
                    faults.append(Fault(f"{place}.{key}", _RULES[key]))
            elif key not in features:
                known = [*FIELD_TYPES, *sorted(features)]
                faults.append(
                    Fault(f"{place}.{shown(key)}", f"unknown key; {did_you_mean(key, known, 'its rule is in /docs')}")
                )
        return faults

    def value_faults(self, events: Sequence[Event], places: Sequence[int]) -> list[Fault]:
        """Faults of users and of features' values, whole columns at a time."""
        faults = []
        features = self._usual.features if type(events[0]) is self._usual.event_type else self._features
        columns = list(zip(*map(astuple, events), strict=True))
        for place, user in zip(places, columns[_ORDER.index("user")], strict=True):
            if type(user) is str and not 0 < len(user.encode("utf-8", "replace")) <= _MAX_USER_BYTES:
                faults.append(Fault(f"events[{place}].user", _RULES["user"]))
        for feature, values in zip(features, columns[len(_ORDER) :], strict=True):
            if values.count(UNSET) == len(values):
                continue
            given = [(place, value) for place, value in zip(places, values, strict=True) if value is not UNSET]
            try:
                self.encoder.columns(feature.block, {feature.name: [value for _, value in given]}, len(given))
            except ColumnErrors as errors:
                faults += [
                    Fault(f"events[{given[fault.row or 0][0]}].{feature.name}", fault.message)
                    for error in errors.errors
                    for fault in error.faults
                ]
        return faults


class _EventFeature(NamedTuple):
    """A feature of a model: its name, its attribute in the struct, its block."""

    name: str
    attribute: str
    block: Block


class _Form(NamedTuple):
    """A struct of events with some features of a model, and the decoder of bodies of such events."""

    features: Sequence[_EventFeature]
    event_type: Any
    decoder: "msgspec.json.Decoder[Any]"

    @classmethod
    def of(cls, features: Sequence[_EventFeature]) -> "_Form":
        """The form with these features."""
        names = {feature.attribute: feature.name for feature in features}
        fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [
            *((name, _DECODED_TYPES[name]) for name in NEEDED),
            *((name, _DECODED_TYPES[name] | UnsetType, UNSET) for name in _ORDER[len(NEEDED) :]),
            *((feature.attribute, Any, UNSET) for feature in features),
        ]
        event_type: Any = msgspec.defstruct(
            "EventOfModel",
            fields,
            rename=lambda attribute: names.get(attribute, attribute),
            forbid_unknown_fields=True,
            omit_defaults=True,
        )
        body: Any = msgspec.defstruct("Body", [("events", list[event_type])], forbid_unknown_fields=True)
        return cls(features, event_type, msgspec.json.Decoder(body))

    def decoded(self, body: bytes) -> list[Event] | None:
        """The events of a body. None where something is wrong with it, or it has other features."""
        try:
            events: list[Event] = self.decoder.decode(body).events
        except (msgspec.MsgspecError, RecursionError):
            return None
        return events if _keep_patterns(events) else None


def read_events(body: bytes, reader_of: Callable[[str | None], EventReader]) -> list[ModelEvents]:
    """The events of a body by model. `reader_of` gives a model's reader, for None that of the only model. Raises
    Problem."""
    found, no_model = None, None
    if _MODEL_KEY not in body:
        try:
            found = _read_at_once(body, reader_of(None))
        except Problem as problem:
            no_model = problem
    if found is None:
        events = _listed(json_object(body))
        if no_model is not None and not any("model" in event for event in events if isinstance(event, dict)):
            raise no_model
        found = _read_by_key(events, reader_of)
    faults = [fault for reader, events, places in found for fault in reader.value_faults(events, places)]
    if faults:
        raise Problem.wrong_content(faults)
    return found


def _keep_patterns(events: list[Event]) -> bool:
    """True where the texts of all events have the form that `FIELD_TYPES` gives them. Few are distinct."""
    ids = {event.request_id for event in events}
    ids.update(event.event_id for event in events if event.event_id is not UNSET)
    return _are_request_ids(ids) and all(map(_is_type, {event.type for event in events}))


def _are_request_ids(texts: set[str]) -> bool:
    """True where each text is one by service/base/record.py. They are read as one, but where a text may be blank."""
    joined = "".join(texts)
    if " " in joined or "" in texts:
        return all(map(is_request_id, texts))
    return joined.isascii() and joined.isprintable() and max(map(len, texts), default=0) <= MAX_REQUEST_ID


def _read_at_once(body: bytes, reader: EventReader) -> list[ModelEvents] | None:
    """The events of a body that names no model. None where something is wrong with it."""
    events = reader.decoded(body)
    if not events or len(events) > MAX_EVENTS or any(event.model is not UNSET for event in events):
        return None
    return [ModelEvents(reader, events, range(len(events)))]


def _read_by_key(events: list[Any], reader_of: Callable[[str | None], EventReader]) -> list[ModelEvents]:
    """The events of a body, key by key."""
    readers: dict[str | None, EventReader] = {}
    found: dict[str, tuple[EventReader, list[Event], list[int]]] = {}
    faults: list[Fault] = []
    for place, event in enumerate(events):
        if len(faults) >= FAULTS_SHOWN:
            break
        wrong = _shape_faults(f"events[{place}]", event)
        if not wrong:
            name = event.get("model")
            if name not in readers:
                readers[name] = _reader_at(place, name, reader_of)
            reader = readers[name]
            wrong = reader.key_faults(f"events[{place}]", event)
            if not wrong:
                _, of_model, places = found.setdefault(reader.model, (reader, [], []))
                of_model.append(reader.event_of({key: value for key, value in event.items() if key != "model"}))
                places.append(place)
        faults += wrong
    if faults:
        raise Problem.wrong_content(faults)
    return [ModelEvents(*one) for one in found.values()]


def _reader_at(place: int, model: str | None, reader_of: Callable[[str | None], EventReader]) -> EventReader:
    """The reader of an event's model. Raises Problem, whose faults name the event."""
    try:
        return reader_of(model)
    except Problem as problem:
        problem.faults = tuple(Fault(f"events[{place}].{path}", message) for path, message in problem.faults)
        raise


def _listed(document: Mapping[str, Any]) -> list[Any]:
    """The list of events. Raises Problem 413, 422."""
    given = document.get("events")
    # A few unknown keys are enough to refuse a body, which may hold as many as it has bytes for.
    unknown = islice((key for key in document if key != "events"), FAULTS_SHOWN)
    faults = [
        Fault(shown(key), f"unknown key; {did_you_mean(key, ['events'], 'the one key is events')}") for key in unknown
    ]
    if isinstance(given, list) and len(given) > MAX_EVENTS:
        message = f"{len(given)} events, {MAX_EVENTS} at most; send them in several requests"
        raise Problem(413, message, faults=[Fault("events", message)], reason="body_too_large")
    if not isinstance(given, list):
        got = "nothing" if "events" not in document else kind_of(given)
        faults.append(Fault("events", f"expected a list of events, got {got}"))
    elif not given:
        faults.append(Fault("events", "no events: at least one is needed"))
    if faults:
        raise Problem.wrong_content(faults)
    assert isinstance(given, list), "checked"
    return given


def _shape_faults(path: str, event: object) -> list[Fault]:
    """Faults for which an event has no reader."""
    if not isinstance(event, dict):
        return [Fault(path, f"expected an object, got {kind_of(event)}")]
    if not isinstance(event.get("model"), str | None):
        return [Fault(f"{path}.model", _RULES["model"])]
    return []
