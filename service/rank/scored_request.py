"""A request of either wire on its way: encoded, then scored, for its answer, the shadow version, drift and the log of
impressions.

Shapes: N candidates, K of them answered.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from model.features.encoder import Column, Encoded, FeatureEncoder, ReadRow
from model.policies.place import Placed
from model.scorer.scorer import NamedCandidates, Scored
from model.user import user_of
from service.base.ranking import ranking
from service.models.version import ServedModel
from service.state.user_state import Hydrated


class ReceivedRequest(Protocol):
    """A request as it came: a Question of /v1, Tensors of /v2."""

    @property
    def user(self) -> dict[str, Any]:
        """User and context features."""

    @property
    def hydrated(self) -> Hydrated | None:
        """Values that the state store gave of them, None where the model has no state of users."""

    @property
    def ids(self) -> list[str]:
        """The candidates' ids."""

    @property
    def rows(self) -> list[dict[str, Any]] | None:
        """The candidates' features where they came as rows."""

    @property
    def top_k(self) -> int | None:
        """Number of candidates that are answered."""

    def written(self) -> Mapping[str, Any]:
        """The candidates' columns, for JSON, where they did not come as rows."""

    def request_columns(self, encoder: FeatureEncoder) -> Mapping[str, Column]:
        """The columns of user and context, as the encoder of the requested version reads them."""


class Arms(NamedTuple):
    """Arm and epoch by experiment that a request is in, and the experiments whose arm could not answer it."""

    arms: Mapping[str, str] = {}
    epochs: Mapping[str, str] = {}
    fell_back: tuple[str, ...] = ()


NO_ARMS = Arms()


class ReadRequest(NamedTuple):
    """A request whose features are read and not encoded. `named` are its candidates where the model has a catalogue,
    `columns` the candidates' own."""

    request_id: str
    model: ServedModel
    value_model: str
    received: ReceivedRequest
    row: ReadRow | Encoded
    columns: Mapping[str, Column]
    named: NamedCandidates | None
    body_bytes: int
    policy: str | None
    experiments: Arms

    def encoded(self, request: Encoded, candidates: Encoded | NamedCandidates) -> "EncodedRequest":
        """The request with the blocks that the model's ranker reads."""
        return EncodedRequest(
            self.request_id,
            self.model,
            self.value_model,
            self.received,
            self.columns,
            request,
            candidates,
            self.body_bytes,
            self.policy,
            self.experiments,
        )


class EncodedRequest(NamedTuple):
    """A request that is ready to be scored. `columns` are its candidates' own, `request` and `candidates` the blocks
    that the model's ranker reads."""

    request_id: str
    model: ServedModel
    value_model: str
    received: ReceivedRequest
    columns: Mapping[str, Column]
    request: Encoded
    candidates: Encoded | NamedCandidates
    body_bytes: int
    policy: str | None = None
    experiments: Arms = NO_ARMS

    @property
    def user(self) -> str | None:
        """The user in canonical form, None where the request names none."""
        hydrated = self.received.hydrated
        return user_of(self.received.user, self.model.user) if hydrated is None else hydrated.user

    @property
    def head(self) -> dict[str, str]:
        """Identifiers of the request, the model, the value model and the policy."""
        head = {
            "request_id": self.request_id,
            "model": self.model.name,
            "model_version": self.model.scorer.version,
            "value_model": self.value_model,
            "value_model_version": self.model.value_models[self.value_model].version,
        }
        if self.policy is not None and self.model.policies is not None:
            head |= {"policy": self.policy, "policy_version": self.model.policies[self.policy].version}
        return head

    @property
    def catalogue_generation(self) -> str | None:
        """The generation of the catalogue that gave features of candidates, which are then not in the request. None
        where none did."""
        named = self.candidates
        if not isinstance(named, NamedCandidates) or not named.uses_catalogue:
            return None
        return str(named.catalogue.manifest.generation)


@dataclass(frozen=True)
class ScoredRequest:
    """A request with its answers and their combined scores, in request order. `placed` is its policy's order, None for
    descending score."""

    encoded: EncodedRequest
    answers: Scored
    score_N: NDArray[np.float64]
    placed: Placed | None = None

    @cached_property
    def order_K(self) -> NDArray[np.intp]:
        """The places of candidates in the order answered, at most `top_k`."""
        if self.placed is not None:
            return self.placed.order_K
        return ranking(self.score_N, self.encoded.received.top_k)
