"""The admin API: which versions of a model are stable, canary and shadow.

In: `{"stable": "3", "canary": {"version": "4", "share": 0.05}, "shadow": "5"}` to /v1/admin/models/{name}/labels. PUT
replaces all labels: one that is left out is removed, but for a stable pin, whose removal takes `"stable": null` in
words. PATCH merges (RFC 7396): what is left out stays, null removes. Out: the labels, in force here and written to the
model's folder, where other workers, and replicas that share it, find them at their next poll. A version is loaded
before its label is taken: one that does not verify is refused, and nothing changes. Each change is an entry of the
model's journal, by the name of its key. Keys with the scope `admin` alone come this far.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.types import Receive, Scope

from model.rollout.labels import Labels
from service.base.clock import Clock
from service.base.errors import Fault, Problem, shown, value_or_kind
from service.base.json_object import json_object
from service.base.record import RequestRecord
from service.models.labels import named_once
from service.models.store import ModelStore

PATH = "/v1/admin/models/{name}/labels"
MAX_BODY_BYTES = 64 * 1024
# What becomes of a model's labels. Raises Problem.
Change = Callable[[Labels], Labels]
# Reads a body of at most so many bytes. Raises Problem.
ReadBody = Callable[[Scope, Receive, int], Awaitable[bytes]]


def _named(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}


_NULL = {"type": "null"}
_LABEL = {"anyOf": [{"type": "string"}, _NULL], "description": "a published version; null removes the label"}
_CANARY: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["version", "share"],
    "properties": {"version": {"type": "string"}, "share": {"type": "number", "minimum": 0, "maximum": 1}},
}
_LABELS: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "stable": _LABEL,
        "canary": {"anyOf": [_CANARY, _NULL]},
        "shadow": _LABEL,
    },
}
_CANARY_CHANGE = {"anyOf": [{key: rule for key, rule in _CANARY.items() if key != "required"}, _NULL]}
_CHANGES = {**_LABELS, "properties": {**_LABELS["properties"], "canary": _CANARY_CHANGE}}
# Bodies of the routes, for the OpenAPI document.
SCHEMAS = {"Labels": _LABELS, "LabelsChange": _CHANGES}
_EXAMPLE = {"stable": "3", "canary": {"version": "4", "share": 0.05}, "shadow": "5"}
_BODY = {"required": True, "content": {"application/json": {"schema": _named("Labels"), "example": _EXAMPLE}}}
_PATCH = {"schema": _named("LabelsChange"), "example": {"canary": {"share": 0.1}, "shadow": None}}
_PATCH_BODY = {"required": True, "content": {"application/merge-patch+json": _PATCH, "application/json": _PATCH}}


def admin_routes(
    store: ModelStore, read_body: ReadBody, clock: Clock, record_of: Callable[[Scope], RequestRecord]
) -> APIRouter:
    """The routes of the admin API. The journal has the clock's time, and the name of the key in a request's record."""
    router = APIRouter()

    async def change_labels(name: str, request: Request, change_of: Callable[[Any], Change]) -> dict[str, Any]:
        change = change_of(_document(await read_body(request.scope, request.receive, MAX_BODY_BYTES)))
        who = f"key {record_of(request.scope).key or 'none'}"
        entry = await asyncio.to_thread(store.set_labels, name, change, clock.now(), who)
        told = {key: entry[key] for key in ("name", "default_version", "labels", "labels_error")}
        return {**told, "poll_seconds": store.poll_seconds}

    @router.put(
        PATH,
        summary="Replaces the labels of a model; other workers follow at their next poll of the models folder",
        description='A label that is left out is removed. Removing a stable pin takes `"stable": null` in words: all '
        "traffic then moves to the newest version.",
        openapi_extra={"requestBody": _BODY},
    )
    async def replace_labels(name: str, request: Request) -> dict[str, Any]:
        return await change_labels(name, request, replacing)

    @router.patch(
        PATH,
        summary="Changes labels of a model and leaves the others; other workers follow at their next poll",
        description="Merges by RFC 7396: what is left out stays, null removes a label.",
        openapi_extra={"requestBody": _PATCH_BODY},
    )
    async def merge_labels(name: str, request: Request) -> dict[str, Any]:
        return await change_labels(name, request, merging)

    return router


def replacing(document: dict[str, Any]) -> Change:
    """The change to these labels. Raises Problem 422. So does the change where it would remove a stable pin without a
    word."""
    labels = read_labels(document)

    def change(before: Labels) -> Labels:
        if before.stable is not None and "stable" not in document:
            rule = f"version {before.stable} is pinned: name it, write null to remove the pin, or PATCH what changes"
            raise Problem.wrong_content([Fault("stable", rule)])
        return labels

    return change


def merging(document: dict[str, Any]) -> Change:
    """The change by these labels. It raises Problem 422 where they do not go together with the others."""
    return lambda before: read_labels(before.merged(document))


def read_labels(document: dict[str, Any]) -> Labels:
    """The labels of a JSON object. Raises Problem 422 naming each fault."""
    try:
        return Labels.model_validate(document)
    except ValidationError as error:
        faults = [
            Fault(
                shown(".".join(str(part) for part in fault["loc"])) if fault["loc"] else "$",
                fault["msg"].removeprefix("Value error, ") + _got(fault["input"]),
            )
            for fault in error.errors(include_url=False, include_context=False)
        ]
        raise Problem.wrong_content(faults) from None


def _document(body: bytes) -> dict[str, Any]:
    document = json_object(body)
    try:
        json.loads(body, object_pairs_hook=named_once)
    except (ValueError, RecursionError) as error:
        raise Problem.wrong_content([Fault("$", str(error))]) from None
    return document


def _got(value: object) -> str:
    """The value of a label that is refused, where it is one value."""
    return "" if isinstance(value, dict | list) else f", got {value_or_kind(value)}"
