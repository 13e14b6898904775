"""The routes of the Open Inference Protocol under /v2, for clients of KServe and Triton.

In: the scoring of the service. Out: its routes. Health and metadata come from the model store. Infer goes the way
of /v1/rank, with another reader at its beginning and another writer at its end.

Shapes: N candidates, K of them answered, O outputs.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.types import Receive, Scope, Send

from model.features.encoder import FeatureEncoder
from model.user import user_of
from service.base.record import RequestRecord, is_request_id
from service.http.middleware import header
from service.models.canary import Sender
from service.models.store import not_ready
from service.open_inference.guessed_key import guessed_key
from service.open_inference.infer import HEADER_LENGTH, Answers, Inference, chosen_outputs, read, read_features, write
from service.open_inference.plan import PLACE, SCORE, TensorPlan, metadata_inputs, metadata_outputs
from service.open_inference.tensors import Tensor, take_key, user_of_tensors
from service.pipeline import Ranking, Scoring, Waiting
from service.policy.choosing import Named
from service.rank.answer import Reply
from service.rank.scored_request import EncodedRequest, ScoredRequest
from service.state.lookups import Lookup
from service.state.users import FoundUser

# Reads a request, has its body answered in a scoring thread, and sends that or a problem.
Respond = Callable[[Scope, Receive, Send, Scoring], Awaitable[None]]

INFER_VERSION = "/v2/models/{name}/versions/{version}/infer"
_INFER = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer")
EXTENSIONS = ("binary_tensor_data", "parameters")
# The protocol's way of naming what runs a model: <project>_<format>.
_PLATFORMS = {"torchscript": "pytorch_torchscript", "compiled": "pytorch_aotinductor"}


class OpenInference:
    """The protocol, spoken by one service. `unready_reason` says why it should get no traffic, None where it should."""

    def __init__(
        self, ranking: Ranking, respond: Respond, unready_reason: Callable[[], str | None], name: str, version: str
    ) -> None:
        self._ranking = ranking
        self._store = ranking.store
        self._respond = respond
        self._unready_reason = unready_reason
        # A plan goes with its version's encoder.
        self._plans: WeakKeyDictionary[FeatureEncoder, TensorPlan] = WeakKeyDictionary()
        self._server = {"name": name, "version": version, "extensions": EXTENSIONS}

    def router(self) -> APIRouter:
        """The routes that report, and score nothing."""
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
            return {"live": True, "ready": True}  # the protocol's own text has the one, its clients read the other

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
        path_params: Mapping[str, str] = scope["path_params"]
        await self._respond(
            scope, receive, send, self._scoring_of(scope, path_params["name"], path_params.get("version"))
        )

    def scoring_at(self, scope: Scope) -> Scoring | None:
        """The scoring of an address of infer. None for another address."""
        found = _INFER.fullmatch(scope["path"])
        return None if found is None else self._scoring_of(scope, found["name"], found["version"])

    def _scoring_of(self, scope: Scope, name: str, version: str | None) -> Scoring:
        header_length = header(scope, HEADER_LENGTH)

        def guess_lookup(body: bytes, deadline: float | None) -> Lookup | None:
            model = self._store.stateful_model(name)
            key = None if model is None else guessed_key(body, header_length, model.file.key)
            return None if model is None or key is None else self._ranking.users.begin(model, key, deadline)

        def answer(body: bytes, record: RequestRecord, deadline: float | None) -> Reply | Waiting:
            ranking = self._ranking
            inference = read(body, header_length)
            if inference.id is not None and is_request_id(inference.id):
                record.request_id = inference.id
            stateful = self._store.stateful_model(name)
            key = {} if stateful is None else take_key(inference.inputs, stateful)
            scored = partial(scored_answer, inference, len(body), record, deadline)
            return ranking.hydrate(stateful, key, scored, record, deadline)

        def scored_answer(
            inference: Inference,
            body_bytes: int,
            record: RequestRecord,
            deadline: float | None,
            found: FoundUser | None,
        ) -> Reply:
            ranking = self._ranking
            model, value_model, policy, arms = ranking.choosing.choose(
                Named(
                    *(name, version, inference.value_model, "parameters.value_model"),
                    *(inference.policy, "parameters.policy", PLACE in inference.outputs),
                ),
                Sender(record.request_id, partial(_unit_of_tensors, inference.inputs, found)),
                record,
            )
            outputs = chosen_outputs(inference, model.scorer.outputs)
            encoder = model.scorer.encoder
            received, request = read_features(inference, encoder, self._plan(encoder), ranking.max_candidates, found)
            received = received._replace(top_k=inference.top_k)
            columns, rows = received.candidates, received.num_candidates
            ranking.users.count_refused(model.name, received.hydrated)
            record.count_candidates(rows)
            both = encoder.encode_both(request, columns, rows)
            encoded = EncodedRequest(
                record.request_id,
                model,
                value_model,
                received,
                columns,
                *both,
                body_bytes,
                policy if PLACE in outputs else None,
                arms,
            )
            scored = ranking.score(encoded, record, deadline)
            if encoded.policy is not None:
                scored = ranking.placing.place(scored, record)
            ranking.hand_on(scored, record)
            # A score fits float32: no value model is accepted whose scores are beyond.
            score = scored.score_N.astype(np.float32)
            values: dict[str, Answers] = dict(zip(model.scorer.outputs, scored.answers.answers_NO.T, strict=True))
            if PLACE in outputs:
                values[PLACE] = _places(scored.order_K, rows)
            return write(_head(scored, inference.id), outputs, {**values, SCORE: score})

        return Scoring(answer, guess_lookup)

    def _plan(self, encoder: FeatureEncoder) -> TensorPlan:
        """The plan of a version's tensors, made at its first request."""
        plan = self._plans.get(encoder)
        if plan is None:
            plan = self._plans[encoder] = TensorPlan(encoder)
        return plan

    def _check_ready(self) -> None:
        reason = self._unready_reason()
        if reason is not None:
            raise not_ready(reason)

    def _readiness(self, name: str, version: str | None) -> dict[str, Any]:
        self._store.find(name, version)
        self._check_ready()
        return {"name": name, "ready": True}

    def _metadata(self, name: str, version: str | None) -> dict[str, Any]:
        scorer = self._store.find(name, version).scorer
        versions = self._store.entry(name)["versions"]
        return {
            "name": name,
            "versions": [entry["version"] for entry in versions if entry["state"] == "ready"],
            "platform": _PLATFORMS[scorer.engine],
            "inputs": metadata_inputs(scorer.encoder),
            "outputs": metadata_outputs(scorer.outputs),
        }


def _unit_of_tensors(inputs: Mapping[str, Tensor], found: FoundUser | None, feature: str) -> str | None:
    """The unit that a feature has among tensors, or in the store where they leave it out."""
    if found is not None and feature == found.model.file.key:
        return found.key
    if found is None or feature in inputs:
        return user_of_tensors(inputs, feature)
    return user_of(found.hydrated({})[0], feature)


def _places(order_K: NDArray[np.intp], rows: int) -> NDArray[np.int64]:
    """place_N from 0, -1 of candidates that are not answered."""
    place_N = np.full(rows, -1, np.int64)
    place_N[order_K] = np.arange(len(order_K))
    return place_N


def _head(scored: ScoredRequest, identifier: str | None) -> dict[str, Any]:
    request, calibration = scored.encoded, scored.answers.calibration
    head = request.head
    named = ("value_model", "value_model_version", "policy", "policy_version")
    parameters = {name: head[name] for name in named if name in head}
    if calibration is not None:
        parameters["calibration"] = calibration
    # The protocol's parameters are no objects.
    parameters |= {f"experiments.{name}": arm for name, arm in request.experiments.arms.items()}
    return {
        "model_name": head["model"],
        "model_version": head["model_version"],
        **({} if identifier is None else {"id": identifier}),
        "parameters": parameters,
    }
