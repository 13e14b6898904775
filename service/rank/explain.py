"""Parts of a combined score: the answer to `"explain": true`, computed only for requests that ask.

In: a scored request. Out: each output's contribution to every candidate's score, by the value model's own rule
(model/value_models/value_model.py), measured against its mean answer at export. Then the weights with which the fusion
network mixed its experts for every candidate. Then how many values of each feature were missing, unknown, or lists cut
to their length, or given by the state store. Of a policy, where its stages put each candidate.

Shapes: N candidates, K of them answered, O outputs of the ranker, G fused units and E experts of a fusion level, B rows
of a column.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.features.encoder import Column
from model.policies.place import Placed
from model.schema import Block, FeedSchema
from model.scorer.scorer import ExpertWeights, NonFiniteScoresError
from service.rank.scored_request import ReceivedRequest, ScoredRequest


class Explanation(NamedTuple):
    """By output that the value model reads, contribution_N in request order, with each fusion level's expert weights.
    Counts of values are by feature, of those features that have any."""

    contributions: dict[str, NDArray[np.float64]]
    levels: list[ExpertWeights]
    inputs: dict[str, dict[str, int]]
    placed: Placed | None

    def of(self, order_K: NDArray[np.intp]) -> dict[str, Any]:
        """`explain` of an answer that has the candidates at positions order_K, in that order. `expert_weights` is null
        where the network mixes no experts."""
        levels = [
            {"units": level.units, "experts": level.experts, "weights": level.weights_NGE[order_K].tolist()}
            for level in self.levels
        ]
        return {
            "contributions": {output: given_N[order_K].tolist() for output, given_N in self.contributions.items()},
            "expert_weights": levels or None,
            "inputs": self.inputs,
            **({} if self.placed is None else {"policy": _moves(self.placed)}),
        }


def explain(request: ScoredRequest, *, with_experts: bool = True) -> Explanation:
    """The explanation of a request's combined scores, with or without the experts' weights. Raises
    NonFiniteScoresError."""
    encoded, scored = request.encoded, request.answers
    scorer, value_model = encoded.model.scorer, encoded.model.value_models[encoded.value_model]
    with np.errstate(all="ignore"):  # the next line is what looks for it
        contributions = value_model.contributions(scored.answers_NO, scorer.reference.means_O)
    if not all(np.isfinite(given_N).all() for given_N in contributions.values()):
        raise NonFiniteScoresError(f"value model '{value_model.name}' gave a contribution that is not finite")
    levels: list[ExpertWeights] = []
    if with_experts:
        # A pass of its own, so that a request gets the same scores with and without reasons, compiled or not.
        _, levels = scorer.explain(encoded.request, encoded.candidates)
    cut = _cut(scorer.schema, encoded.received.request_columns(scorer.encoder), "request")
    cut |= _cut(scorer.schema, encoded.columns, "candidate")
    counts = {"missing": scored.missing, "unknown": scored.oov, "cut": cut, **_from_state(encoded.received)}
    inputs = {what: {name: count for name, count in by_name.items() if count} for what, by_name in counts.items()}
    return Explanation(contributions, levels, inputs, request.placed)


def _moves(placed: Placed) -> dict[str, Any]:
    """Places of the answered candidates after each stage that orders, and the stages that moved each of them."""
    places = placed.places()
    stages = list(places)
    moved_by: list[list[str]] = [[] for _ in placed.order_K]
    for before, stage in pairwise(stages):
        for number in np.flatnonzero(places[before] != places[stage]).tolist():
            moved_by[number].append(stage)
    return {"places": {stage: place_K.tolist() for stage, place_K in places.items()}, "moved_by": moved_by}


def _from_state(received: ReceivedRequest) -> dict[str, dict[str, int]]:
    """Values that the state store gave, of a model with state. A list has as many as its length, an empty one is one
    value."""
    if received.hydrated is None:
        return {}
    given = received.hydrated.values
    return {"state": {name: max(1, len(value)) if isinstance(value, list) else 1 for name, value in given.items()}}


def _cut(schema: FeedSchema, columns: Mapping[str, Column], block: Block) -> dict[str, int]:
    """Lists that are longer than their feature's `max_length`, of which the last ids alone are read."""
    cut = {}
    for feature in schema.requested(block):
        if feature.name in columns and (is_cut_B := feature.cut_rows(columns[feature.name])) is not None:
            cut[feature.name] = int(np.count_nonzero(is_cut_B))
    return cut
