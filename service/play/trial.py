"""POST /v1/play/rank: a scoring request to look at, under a value model that may be a draft.

In: `{"request": <body of /v1/rank>, "draft": <a value model, as in value_models.yaml>, "experts": false}`, in a scoring
thread. Out: answers, scores and contributions in request order, with the order that they make. So the page can
rank again by other weights. The request is of no experiment and of no canary. It leaves no impression, no drift, no
shadow and no counts of its version, as no user is behind it.

Shapes: N candidates, K of them answered, O outputs, G fused units and E experts of a fusion level.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec
import numpy as np
import orjson

from model.scorer.scorer import NonFiniteScoresError
from model.value_models.value_model import ValueModel
from service.base.clock import Clock
from service.base.errors import Fault, Problem
from service.base.record import RequestRecord
from service.models.store import ModelStore
from service.models.version import ServedModel
from service.pipeline import Ranking, Scoring, Waiting, check_deadline, with_state
from service.play.body import read_object
from service.policy.choosing import Chosen, value_model_name
from service.policy.placing import placed_by_policy, policy_name
from service.rank.answer import Reply
from service.rank.explain import Explanation, explain
from service.rank.question import Question
from service.rank.read import read_question
from service.rank.scored_request import NO_ARMS, EncodedRequest, ScoredRequest
from service.state.users import FoundUser

PATH = "/v1/play/rank"
# The name that a draft has in answers and faults.
DRAFT = "draft"


class _Trial(msgspec.Struct, forbid_unknown_fields=True):
    """The body."""

    request: msgspec.Raw
    draft: dict[str, Any] | None = None
    experts: bool = False


class _Checked(msgspec.Struct, forbid_unknown_fields=True):
    """The body, for its faults: a request has those of its own."""

    request: dict[str, Any]
    draft: dict[str, Any] | None = None
    experts: bool = False


@dataclass(frozen=True, slots=True)
class Trials:
    """Scoring of the page's requests."""

    ranking: Ranking
    clock: Clock

    @property
    def scoring(self) -> Scoring:
        """The scoring of POST /v1/play/rank. No user is guessed before the body is parsed."""
        return Scoring(self.answer, lambda body, deadline: None)

    @property
    def _store(self) -> ModelStore:
        return self.ranking.store

    def answer(self, body: bytes, record: RequestRecord, deadline: float | None) -> Reply | Waiting:
        """The answer's body. Raises Problem as /v1/rank does, and 422 for a draft that is no value model."""
        trial = read_object(body, _Trial, _Checked)
        question = read_question(bytes(trial.request), self.ranking.max_candidates, record)
        stateful = self._store.stateful_model(question.options.model)
        answered = partial(self._answer, trial, question, record, deadline)
        return self.ranking.hydrate(stateful, question.user, answered, record, deadline)

    def _answer(
        self, trial: _Trial, question: Question, record: RequestRecord, deadline: float | None, found: FoundUser | None
    ) -> Reply:
        chosen = self._choose(question, trial.draft)
        record.model = chosen.model.name
        encoded = self.ranking.encode_chosen(with_state(question, found), chosen, len(trial.request), record)
        check_deadline(deadline)
        answers = self.ranking.answers(encoded, record)
        score_N = chosen.model.value_models[chosen.value_model].score(answers.answers_NO)
        if not np.isfinite(score_N).all():
            raise Problem(500, "the value model gave a score that is not finite, so none is given", reason="not_finite")
        scored = ScoredRequest(encoded, answers, score_N)
        if chosen.policy is not None:
            scored = replace(scored, placed=placed_by_policy(scored, self.clock))
        try:
            explanation = explain(scored, with_experts=trial.experts)
        except NonFiniteScoresError as error:
            raise Problem(500, f"{error}, so none is given", reason="not_finite") from None
        return Reply(_written(scored, explanation))

    def _choose(self, question: Question, draft: Mapping[str, Any] | None) -> Chosen:
        """Version, value model and policy that the request names. Raises Problem: 404, 422, 503."""
        options = question.options
        model = self._store.find(options.model, options.version_name)
        if draft is not None:
            model, name = with_draft(model, draft), DRAFT
        else:
            name = value_model_name(model, options.value_model, "value_model")
        return Chosen(model, name, policy_name(model, options.policy, "policy"), NO_ARMS)


def with_draft(model: ServedModel, draft: Mapping[str, Any], place: str = DRAFT) -> ServedModel:
    """A model that has a draft among its value models. Raises Problem 422 at `place`."""
    try:
        value_model = ValueModel.from_mapping(DRAFT, draft, model.scorer.domain, DRAFT)
    except ValueError as error:
        rule = str(error).removeprefix(f"{DRAFT}: ")
        raise Problem.wrong_content([Fault(place, rule)]) from None
    return replace(model, value_models=model.value_models.with_one(value_model))


def _written(scored: ScoredRequest, explanation: Explanation) -> bytes:
    """The answer, candidates in request order."""
    encoded: EncodedRequest = scored.encoded
    outputs, answers_ON = encoded.model.scorer.outputs, np.ascontiguousarray(scored.answers.answers_NO.T)
    levels = [{"units": one.units, "experts": one.experts, "weights": one.weights_NGE} for one in explanation.levels]
    placed = scored.placed
    body = {
        **encoded.head,
        "calibration": scored.answers.calibration,
        "ids": encoded.received.ids,
        "answers": dict(zip(outputs, answers_ON, strict=True)),
        "score": scored.score_N,
        "order": np.ascontiguousarray(scored.order_K),
        "contributions": {name: np.ascontiguousarray(given_N) for name, given_N in explanation.contributions.items()},
        "inputs": explanation.inputs,
        "dropped": {} if placed is None else placed.dropped,
        "experts": [{**one, "weights": np.ascontiguousarray(one["weights"])} for one in levels],
    }
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
