"""A scoring request from its bytes to those of its answer: read, hydrate, choose, encode, score, place, hand on, write.

In: the body of POST /v1/rank, in a scoring thread. Out: the answer, or a Problem. /v2 reads and writes another form and
takes the same steps between. A request has one user and many candidates. User and context are computed once. Where the
model has state of users, a request whose look-up has not ended leaves its thread, and goes on when that has.

Shapes: N candidates, O outputs.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from model.features.encoder import encoded_row
from model.scorer.scorer import NonFiniteScoresError, Scored
from model.user import user_of
from service.base.errors import Problem
from service.base.log import FieldLogger
from service.base.record import RequestRecord
from service.impressions.writer import ImpressionLog
from service.metrics.metrics import Metrics
from service.models.canary import Sender
from service.models.store import ModelStore
from service.models.version import StatefulModel
from service.policy.choosing import Choosing, Chosen, Named
from service.policy.placing import PolicyPlacing
from service.rank.answer import Reply, write
from service.rank.catalogue import UnknownCandidates, named_candidates
from service.rank.explain import Explanation, explain
from service.rank.question import Question, read_features
from service.rank.read import read_question
from service.rank.scored_request import EncodedRequest, ReadRequest, ScoredRequest
from service.rank.strict import check_strict
from service.state.lookups import Lookup
from service.state.users import FoundUser, Users
from service.watch.drift import Drift
from service.watch.shadow import ShadowScoring

TIMEOUT_HEADER = "X-Request-Timeout-Ms"


class Waiting(NamedTuple):
    """A request that waits for a look-up of its user. `resume` answers it then, in a scoring thread."""

    lookup: Lookup
    resume: Callable[[], "Reply | Waiting"]


# The body, what is known of the request, and its deadline in seconds of time.perf_counter.
Answer = Callable[[bytes, RequestRecord, float | None], Reply | Waiting]


class Scoring(NamedTuple):
    """The scoring of requests to one address: from a body to its answer, in a scoring thread. Before that, on the event
    loop, from a body and a deadline to the look-up of the user that it seems to name."""

    answer: Answer
    guess_lookup: Callable[[bytes, float | None], Lookup | None]


_log = FieldLogger()


@dataclass(frozen=True, slots=True)
class Ranking:
    """Scoring of requests by the models of a service."""

    store: ModelStore
    choosing: Choosing
    metrics: Metrics
    impressions: ImpressionLog | None
    shadow: ShadowScoring
    drift: Drift
    max_candidates: int
    unknown_candidates: UnknownCandidates
    users: Users
    placing: PolicyPlacing

    @property
    def scoring(self) -> Scoring:
        """The scoring of POST /v1/rank."""
        return Scoring(self.answer, self.users.guess_lookup)

    def answer(self, body: bytes, record: RequestRecord, deadline: float | None) -> Reply | Waiting:
        """The answer's body. Runs in a scoring thread. `deadline` is on the clock of time.perf_counter, in seconds."""
        question = read_question(body, self.max_candidates, record)
        model = self.store.stateful_model(question.options.model)
        scored = partial(self._answer, question, len(body), record, deadline)
        return self.hydrate(model, question.user, scored, record, deadline)

    def hydrate(
        self,
        model: StatefulModel | None,
        user: Mapping[str, Any],
        then: Callable[[FoundUser | None], Reply],
        record: RequestRecord,
        deadline: float | None,
    ) -> Reply | Waiting:
        """The answer of `then` to a request with its user, None of a model without state: now, where the look-up of the
        user has ended. Raises Problem 422 for a faulty key."""
        if model is None:
            return then(None)
        found = self.users.find(model, user, record.lookup, deadline)
        record.lookup = found.lookup
        if found.has_ended:
            return then(found)
        assert found.lookup is not None, "without one there is no waiting"
        return Waiting(found.lookup, partial(then, found))

    def _answer(
        self,
        question: Question,
        body_bytes: int,
        record: RequestRecord,
        deadline: float | None,
        found: FoundUser | None,
    ) -> Reply:
        encoded = self.encode(question, body_bytes, record, found)
        scored = self.score(encoded, record, deadline)
        return Reply(self.finish(scored, record, explains=bool(question.options.explain)))

    def encode(
        self, question: Question, body_bytes: int, record: RequestRecord, found: FoundUser | None
    ) -> EncodedRequest:
        """The request with its user as found and the choice of what answers it, ready to be scored. Raises Problem:
        404, 422, 503."""
        return _encoded(self.read(question, body_bytes, record, found))

    def read(self, question: Question, body_bytes: int, record: RequestRecord, found: FoundUser | None) -> ReadRequest:
        """The same, to be encoded with others of its version."""
        options, question = question.options, with_state(question, found)
        named = Named(options.model, options.version_name, options.value_model, "value_model", options.policy)
        chosen = self.choosing.choose(named, Sender(record.request_id, partial(_unit, question.user, found)), record)
        return self._read_chosen(question, chosen, body_bytes, record)

    def finish(self, scored: ScoredRequest, record: RequestRecord, *, explains: bool) -> bytes:
        """The body of a scored request's answer, in its policy's order. Raises Problem 500."""
        if scored.encoded.policy is not None:
            scored = self.placing.place(scored, record)
        explanation = _explanation(scored, record) if explains else None
        self.hand_on(scored, record)
        return write(scored, explanation)

    def encode_chosen(
        self, question: Question, chosen: Chosen, body_bytes: int, record: RequestRecord
    ) -> EncodedRequest:
        """The question's blocks, ready to be scored. Raises Problem 422."""
        return _encoded(self._read_chosen(question, chosen, body_bytes, record))

    def _read_chosen(self, question: Question, chosen: Chosen, body_bytes: int, record: RequestRecord) -> ReadRequest:
        """The question's features, the candidates joined with the model's catalogue where it has one. Raises Problem
        422 for faulty values, for what a strict question leaves out, and for candidates that nothing describes."""
        model, value_model, policy, arms = chosen
        record.count_candidates(len(question.ids))
        row, columns = read_features(question, model.scorer.encoder)
        self.users.count_refused(model.name, question.hydrated)
        named = named_candidates(model, question, columns, self.unknown_candidates)
        if question.options.strict:
            check_strict(question, model.scorer.schema, None if named is None else named.is_known_N)
        return ReadRequest(
            record.request_id, model, value_model, question, row, columns, named, body_bytes, policy, arms
        )

    def score(self, request: EncodedRequest, record: RequestRecord, deadline: float | None) -> ScoredRequest:
        """Answers and their combined score, counted and measured. Raises Problem: 500 not finite, 504."""
        check_deadline(deadline)
        started = time.perf_counter()
        scored = self.combine(request, self.answers(request, record), record)
        self.metrics.inference_seconds.observe_soon(time.perf_counter() - started)
        return scored

    def answers(self, request: EncodedRequest, record: RequestRecord) -> Scored:
        """Answers of the model. Raises Problem 500 where they are not finite."""
        try:
            return request.model.scorer.score(request.request, request.candidates)
        except NonFiniteScoresError as error:
            self.store.recheck(request.model)
            raise _not_finite(record, str(error)) from None

    def combine(self, request: EncodedRequest, scored: Scored, record: RequestRecord) -> ScoredRequest:
        """Answers with their combined score, counted. Raises Problem 500 where that is not finite."""
        model, value_model = request.model, request.value_model
        record.calibration = scored.calibration
        score_N = model.value_models[value_model].score(scored.answers_NO)
        if not np.isfinite(score_N).all():
            raise _not_finite(record, f"value model '{value_model}' gave a combined score that is not finite")
        self.metrics.candidates.observe_soon(len(score_N))
        record.count_scores = partial(model.metrics.observe, scored, value_model, score_N)
        return ScoredRequest(request, scored, score_N)

    def hand_on(self, request: ScoredRequest, record: RequestRecord) -> None:
        """Give a scored request to the shadow version, to drift and to the impression log, as far as each wants it."""
        self.shadow.take_request(record, request)
        self.drift.take_request(request)
        if self.impressions is not None:
            self.impressions.take_request(record, request)


def _encoded(read: ReadRequest) -> EncodedRequest:
    """A request with its blocks, those of the candidates as the catalogue has them where there is one."""
    if read.named is not None:
        return read.encoded(encoded_row(read.row), read.named)
    return read.encoded(*read.model.scorer.encoder.encode_both(read.row, read.columns, len(read.received.ids)))


def with_state(question: Question, found: FoundUser | None) -> Question:
    """A question whose user has what the state store gave, None of a model without state."""
    if found is None:
        return question
    merged, hydrated = found.hydrated(question.user)
    return question._replace(user=merged, hydrated=hydrated)


def _unit(user: Mapping[str, object], found: FoundUser | None, feature: str) -> str | None:
    """The unit that a feature has among those of the user as used. A key need be none of these."""
    return found.key if found is not None and feature == found.model.file.key else user_of(user, feature)


def _explanation(request: ScoredRequest, record: RequestRecord) -> Explanation:
    """The explanation of a scored request. Raises Problem 500."""
    try:
        return explain(request)
    except NonFiniteScoresError as error:
        raise _not_finite(record, str(error)) from None


def check_deadline(deadline: float | None) -> None:
    """Raise Problem 504 once it has passed: an answer that is too late is not computed."""
    if deadline is not None and time.perf_counter() >= deadline:
        raise deadline_passed()


def _not_finite(record: RequestRecord, reason: str) -> Problem:
    _log.error("scores are not finite", request_id=record.request_id, reason=reason)
    return Problem(500, "the model's scores are not finite, so none is given", reason="not_finite")


def deadline_passed() -> Problem:
    """504."""
    return Problem(504, f"the deadline of {TIMEOUT_HEADER} has passed", reason="deadline")
