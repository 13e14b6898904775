"""The routes of the Open Inference Protocol under /v2, for clients of KServe and Triton.

In: the service. Out: its routes. Health and metadata are told from the model store; infer goes the way of /v1/rank,
with another reader at its beginning and another writer at its end.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter
from starlette.types import Receive, Scope, Send

from service import open_inference
from service.answers import Reply
from service.impressions import Tensors
from service.loaded_version import ServedModel
from service.model_store import not_ready
from service.observe import header
from service.open_inference import HEADER_LENGTH, SCORE
from service.request_log import RequestRecord
from service.wire import is_request_id

if TYPE_CHECKING:
    from service.app import Service

INFER_VERSION = "/v2/models/{name}/versions/{version}/infer"
EXTENSIONS = ("binary_tensor_data", "parameters")
# The protocol's way of naming what runs a model: <project>_<format>.
_PLATFORMS = {"torchscript": "pytorch_torchscript", "compiled": "pytorch_aotinductor"}


class OpenInference:
    """The protocol, spoken by one service."""

    def __init__(self, service: "Service", name: str, version: str) -> None:
        self._service = service
        self._server = {"name": name, "version": version, "extensions": EXTENSIONS}

    def router(self) -> APIRouter:
        """The routes that are asked for, not scored."""
        router = APIRouter()

        @router.get("/v2", summary="The server, to clients of the Open Inference Protocol")
        async def server() -> dict[str, Any]:
            return self._server

        @router.get("/v2/health/live", summary="The process is alive")
        async def live() -> dict[str, bool]:
            return {"live": True}

        @router.get("/v2/health/ready", summary="The process can score")
        async def ready() -> dict[str, bool]:
            self._check_ready()
            return {"live": True, "ready": True}  # the protocol's own text has the one, its clients look for the other

        @router.get("/v2/models/{name}", summary="The tensors of a model")
        async def model(name: str) -> dict[str, Any]:
            return self._metadata(name, None)

        @router.get("/v2/models/{name}/versions/{version}", summary="The tensors of a model version")
        async def model_version(name: str, version: str) -> dict[str, Any]:
            return self._metadata(name, version)

        @router.get("/v2/models/{name}/ready", summary="The model can score")
        async def model_ready(name: str) -> dict[str, Any]:
            return self._readiness(name, None)

        @router.get("/v2/models/{name}/versions/{version}/ready", summary="The model version can score")
        async def model_version_ready(name: str, version: str) -> dict[str, Any]:
            return self._readiness(name, version)

        return router

    async def infer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /v2/models/{name}/infer and the same of a version, as plain ASGI."""
        asked: Mapping[str, str] = scope["path_params"]
        header_length = header(scope, HEADER_LENGTH)

        def answer(body: bytes, record: RequestRecord, deadline: float | None) -> Reply:
            service, settings = self._service, self._service.settings
            inference = open_inference.read(body, header_length)
            if inference.id is not None and is_request_id(inference.id):
                record.request_id = inference.id
            model = service.store.find(asked["name"], asked.get("version"), record.request_id)
            value_model = service.ranking.chosen(model, inference.value_model, "parameters.value_model", record)
            outputs = open_inference.chosen_outputs(inference, model.scorer.tasks)
            request_columns, candidate_columns, rows = open_inference.columns(
                inference, model.scorer.encoder, settings.max_candidates
            )
            record.know_candidates(rows)
            scored, score_N = service.ranking.scores(
                model,
                value_model,
                lambda: model.scorer.score(request_columns, candidate_columns, rows),
                record,
                deadline,
            )
            columns = (request_columns, candidate_columns)
            service.shadow.take(record, model, value_model, columns, None, scored.answers_NT, score_N)
            service.metrics.drift.take(model, columns, scored.answers_NT)
            score = score_N.astype(np.float32)  # which holds it: no value model is accepted whose scores are beyond
            if service.impressions is not None:
                asked_for = Tensors(request_columns, candidate_columns, rows)
                scorer, size = model.scorer, len(body)
                service.impressions.take(
                    record, asked_for, scorer.tasks, score_N, scored.answers_NT, size, scorer.encoder.integers
                )
            values = dict(zip(model.scorer.tasks, scored.answers_NT.T, strict=True))
            return open_inference.write(_head(model, value_model, inference.id), outputs, {**values, SCORE: score})

        await self._service.respond(scope, receive, send, answer)

    def _check_ready(self) -> None:
        reason = self._service.unready_reason
        if reason is not None:
            raise not_ready(reason)

    def _readiness(self, name: str, version: str | None) -> dict[str, Any]:
        self._service.store.find(name, version)
        self._check_ready()
        return {"name": name, "ready": True}

    def _metadata(self, name: str, version: str | None) -> dict[str, Any]:
        scorer = self._service.store.find(name, version).scorer
        versions = self._service.store.entry(name)["versions"]
        return {
            "name": name,
            "versions": [entry["version"] for entry in versions if entry["state"] == "ready"],
            "platform": _PLATFORMS[scorer.engine],
            "inputs": open_inference.metadata_inputs(scorer.encoder),
            "outputs": open_inference.metadata_outputs(scorer.tasks),
        }


def _head(model: ServedModel, value_model: str, identifier: str | None) -> dict[str, Any]:
    return {
        "model_name": model.name,
        "model_version": model.scorer.version,
        **({} if identifier is None else {"id": identifier}),
        "parameters": {"value_model": value_model, "value_model_version": model.value_models[value_model].version},
    }
