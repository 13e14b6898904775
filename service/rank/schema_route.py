"""GET /v1/models/{name}/request-schema: the JSON Schema of a model's request, for generators of types and for tests.

In: a model, and a version or label of it where not what is served is meant. Out: the schema, with an ETag. Its example
is a golden request, which has rows of a training log: the route needs the scope `score`, as asking for scores does.
"""

import hashlib

import msgspec
from fastapi import APIRouter, Query, Request, Response

from service.models.store import ModelStore
from service.rank.openapi import example_request
from service.rank.request_schema import request_schema

PATH = "/v1/models/{name}/request-schema"
_MEDIA_TYPE = "application/schema+json"
_DIGITS = 32


def schema_routes(store: ModelStore, max_candidates: int) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.get(
        PATH,
        summary="JSON Schema of a model's request to /v1/rank, to generate types from",
        response_class=Response,
        responses={
            200: {
                "description": "the schema (2020-12), with a golden request as its example",
                "content": {_MEDIA_TYPE: {"schema": {"type": "object"}}},
                "headers": {"ETag": {"description": "identifies the content", "schema": {"type": "string"}}},
            },
            304: {"description": "the schema is the one of If-None-Match"},
        },
    )
    def request_schema_of(
        name: str,
        request: Request,
        version: str | None = Query(None, description="a loaded version or a label. What is served where left out"),
    ) -> Response:
        model = store.find(name, version)
        named = {} if version is None else {"version": version}
        example = {**example_request(model), **named}
        body = msgspec.json.encode(request_schema(model, max_candidates, example))
        tag = f'"{hashlib.sha256(body).hexdigest()[:_DIGITS]}"'
        headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
        if tag in _tags(request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type=_MEDIA_TYPE)

    return router


def _tags(given: str) -> set[str]:
    """The tags of If-None-Match, which are compared weakly."""
    return {tag.strip().removeprefix("W/") for tag in given.split(",")}
