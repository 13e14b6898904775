"""The routes that show models: all of them, and one with its schema and metrics.

In: the store. Out: JSON, computed at each request.
"""

from typing import Any

from fastapi import APIRouter

from service.models.store import ModelStore


def model_routes(store: ModelStore) -> APIRouter:
    """The routes of /v1/models."""
    router = APIRouter()

    @router.get("/v1/models", summary="All models and the state of their versions")
    async def models() -> dict[str, Any]:
        return {"models": store.entries(), "error": store.folder_error}

    @router.get("/v1/models/{name}", summary="One model, with the schema and metrics of the version that is served")
    async def model(name: str) -> dict[str, Any]:
        return store.entry(name)

    return router
