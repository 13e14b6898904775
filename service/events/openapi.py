"""The events route in OpenAPI: its request and its answers, from the types that it is read by."""

from typing import Any

import msgspec

from service.base.errors import MEDIA_TYPE
from service.events.event import FIELD_TYPES, MAX_EVENTS, NEEDED
from service.metrics.metrics import EVENTS
from service.rank.openapi import ANSWERED_ID, REQUEST_ID_HEADER, reference, refusals
from service.rank.request_schema import json_patterns

_DESCRIPTIONS = {
    "request_id": "the id of the request whose answer the user acted on",
    "type": "what the user did; `shown` says that a client displayed the candidate",
    "id": "the candidate's id in that request",
    "position": "the place in the answer as displayed, from 0; distinguishes repeats of an id in one request",
    "time": "when it happened (RFC 3339); the time of receipt where it is left out",
    "value": "a quantity, such as milliseconds played; 1 where it is left out",
    "event_id": "the identity of the event: sent again, it counts once. Needed for types that add up",
    "user": 'the user\'s id; 17 and "17" are one',
    "model": "may be left out where one model is served",
}
_EXAMPLE = {
    "events": [
        {"request_id": "r-1", "type": "shown", "id": "v2", "position": 0, "time": "2026-11-29T20:15:03.120Z"},
        {"request_id": "r-1", "type": "click", "id": "v2", "event_id": "e-76"},
    ]
}
_REFUSALS = {
    "400": "not JSON",
    "401": "no key, or a wrong one, where keys are configured",
    "403": "a key without the scope `events`",
    "404": "no such model, or the service has no event log",
    "408": "the body took too long to arrive",
    "413": "body or events over the limit",
    "415": "a Content-Encoding that is not read; gzip and deflate are",
    "422": "wrong content; `errors` names every fault, and no event is taken",
    "429": "unfinished requests take too much memory together",
    "500": "an error of the service, not of the request",
    "503": "the log is full or its disk too slow, no model is loaded, or draining; no event is taken",
}
_FEATURE = {"description": "a feature of the model by its name, such as an item's id"}


def with_events(document: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI document with the events route added."""
    document.setdefault("paths", {})[EVENTS] = {
        "post": {
            "summary": "Log what users did with a ranking: accepted once it is on the disk",
            "operationId": "events",
            "parameters": [REQUEST_ID_HEADER],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": reference("EventsRequest"), "example": _EXAMPLE}},
            },
            "responses": {
                "202": {
                    "description": "the events are in the log",
                    "headers": ANSWERED_ID,
                    "content": {"application/json": {"schema": reference("EventsAnswer"), "example": {"accepted": 2}}},
                },
                **refusals(_REFUSALS, MEDIA_TYPE, "Problem"),
            },
        }
    }
    document.setdefault("components", {}).setdefault("schemas", {}).update(_schemas())
    return document


def _schemas() -> dict[str, Any]:
    fields = {
        name: {**json_patterns(msgspec.json.schema(kind)), "description": _DESCRIPTIONS[name]}
        for name, kind in FIELD_TYPES.items()
    }
    event = {"type": "object", "properties": fields, "required": list(NEEDED), "additionalProperties": _FEATURE}
    events = {"type": "array", "items": event, "minItems": 1, "maxItems": MAX_EVENTS}
    return {
        "EventsRequest": {
            "type": "object",
            "properties": {"events": events},
            "required": ["events"],
            "additionalProperties": False,
        },
        "EventsAnswer": {
            "type": "object",
            "properties": {"accepted": {"type": "integer", "minimum": 1}},
            "required": ["accepted"],
        },
    }
