"""PUT /v1/admin/models/{name}/value_models/{entry}: one value model, saved under the version of the file that was seen.

In: a value model as JSON, and `If-Match` with the sha256 of value_models.yaml, or `If-None-Match: *` where there is
none. Out: the file with that entry, in force here, and its new `ETag`. Other workers follow at their next poll. Keys
with the scope `admin` alone come this far.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.types import Scope

from service.base.clock import Clock
from service.base.errors import Fault, Problem
from service.base.json_object import json_object
from service.base.record import RequestRecord
from service.models.admin import MAX_BODY_BYTES, ReadBody
from service.models.store import ModelStore
from service.models.value_model_save import ValueModelSave

PATH = "/v1/admin/models/{name}/value_models/{entry}"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")
_TAG = re.compile(r'"([0-9a-f]{64})"')
_SUM = {"kind": "weighted_sum", "weights": {"click": 1.0, "like": 13.5}}
_BODY = {"required": True, "content": {"application/json": {"schema": {"type": "object"}, "example": _SUM}}}


def _parameter(name: str, told: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": {"type": "string"}, "description": told}


_HEADERS = [
    _parameter("If-Match", "sha256 of value_models.yaml as it was seen, in hexadecimal and double quotes"),
    _parameter("If-None-Match", "`*` where the model has no such file"),
]


def value_model_routes(
    store: ModelStore, read_body: ReadBody, clock: Clock, record_of: Callable[[Scope], RequestRecord]
) -> APIRouter:
    """The route. The journal has the clock's time, and the name of the key in a request's record."""
    router = APIRouter()

    @router.put(
        PATH,
        summary="Saves a value model; the text of all other entries stays",
        description="Needs `If-Match`, or `If-None-Match: *` where the model has no file yet. Without either it is a "
        "428, and a 412 where the file has changed since.",
        response_class=JSONResponse,
        openapi_extra={"requestBody": _BODY, "parameters": _HEADERS},
    )
    async def save(name: str, entry: str, request: Request) -> JSONResponse:
        if _NAME.fullmatch(entry) is None:
            rule = "the name of a value model has letters, digits, '_', '.' and '-', 63 at most, a letter or '_' first"
            raise Problem.wrong_content([Fault("entry", rule)])
        seen = _seen(request)
        definition = json_object(await read_body(request.scope, request.receive, MAX_BODY_BYTES))
        who = f"key {record_of(request.scope).key or 'none'}"
        saved = await asyncio.to_thread(
            store.save_value_model, name, ValueModelSave(entry, definition, seen, clock.now(), who)
        )
        told = {key: value for key, value in saved.items() if key == "name" or key.startswith("value_models")}
        tag = {"ETag": f'"{saved["value_models_sha256"]}"'}
        return JSONResponse({**told, "poll_seconds": store.poll_seconds}, headers=tag)

    return router


def _seen(request: Request) -> str | None:
    """The sha256 that the author saw, None of no file. Raises Problem 412 and 428."""
    match, none_match = request.headers.get("if-match"), request.headers.get("if-none-match")
    if match is None:
        if none_match == "*":
            return None
        rule = "If-Match is needed: the sha256 of value_models.yaml as it was seen; without a file, If-None-Match: *"
        raise Problem(428, rule)
    tag = _TAG.fullmatch(match)
    if tag is None:
        raise Problem(412, "If-Match is no sha256 of 64 hexadecimal digits in double quotes, so it fits no file")
    return tag[1]
