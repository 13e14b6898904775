"""The admin API: which versions of a model are stable, canary and shadow.

In: PUT /v1/admin/models/{name}/labels, `{"stable": "3", "canary": {"version": "4", "share": 0.05}, "shadow": "5"}`; a
label that is null or left out is removed. Out: the labels, in force here and written to the model's folder, where
other workers, and replicas that share it, find them at their next look. A version is loaded before its label is taken:
one that does not hold is refused, and nothing changes. Keys with the scope `admin` alone come this far.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.types import Receive, Scope

from service.errors import Fault, Problem, shown
from service.labels import Labels
from service.model_store import ModelStore
from service.wire import json_object

MAX_BODY_BYTES = 64 * 1024
# Reads a body of at most so many bytes. Raises Problem.
ReadBody = Callable[[Scope, Receive, int], Awaitable[bytes]]

_LABEL = {"type": "string", "nullable": True, "description": "a published version; null removes the label"}
_LABELS = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "stable": _LABEL,
        "canary": {
            "type": "object",
            "nullable": True,
            "additionalProperties": False,
            "required": ["version", "share"],
            "properties": {"version": {"type": "string"}, "share": {"type": "number", "minimum": 0, "maximum": 1}},
        },
        "shadow": _LABEL,
    },
}
_EXAMPLE = {"stable": "3", "canary": {"version": "4", "share": 0.05}, "shadow": "5"}
_BODY = {"required": True, "content": {"application/json": {"schema": _LABELS, "example": _EXAMPLE}}}


def admin_routes(store: ModelStore, read_body: ReadBody) -> APIRouter:
    """The routes of the admin API."""
    router = APIRouter()

    @router.put(
        "/v1/admin/models/{name}/labels",
        summary="Sets the labels of a model; other workers follow at their next look at the models folder",
        openapi_extra={"requestBody": _BODY},
    )
    async def set_labels(name: str, request: Request) -> dict[str, Any]:
        labels = read_labels(await read_body(request.scope, request.receive, MAX_BODY_BYTES))
        entry = await asyncio.to_thread(store.set_labels, name, labels)
        told = {key: entry[key] for key in ("name", "default_version", "labels", "labels_error")}
        return {**told, "poll_seconds": store.poll_seconds}

    return router


def read_labels(body: bytes) -> Labels:
    """The labels of a body. Raises Problem: 400 not JSON, 422 naming each fault."""
    document = json_object(body)
    try:
        return Labels.model_validate(document)
    except ValidationError as error:
        faults = [
            Fault(
                shown(".".join(str(part) for part in fault["loc"])) if fault["loc"] else "$",
                fault["msg"].removeprefix("Value error, "),
            )
            for fault in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise Problem.wrong_content(faults) from None
