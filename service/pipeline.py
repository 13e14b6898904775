"""A scoring request from its bytes to the bytes of its answer: decode, check, columns, score, combine, rank, encode.

In: the body of POST /v1/rank, in a scoring thread. Out: the answer, or a Problem. /v2 reads and writes another form and
takes the same steps between. A request has one user and many candidates. User and context are computed once.

Shapes: N candidates, O outputs.
"""

import logging
import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from model.features.encoder import Column
from model.scorer.scorer import NonFiniteScoresError, Scored
from model.value_models.value_model import DEFAULT
from service.base.errors import Fault, Problem, told
from service.base.log import LOGGER
from service.base.record import RequestRecord
from service.impressions.line import Asked
from service.impressions.writer import ImpressionLog
from service.metrics.metrics import Metrics
from service.models.store import ModelStore
from service.models.version import ServedModel
from service.rank.answer import Reply, write
from service.rank.catalogue import UnknownCandidates, named_candidates
from service.rank.explain import explain
from service.rank.question import Question, check_count, columns, decode, parse, request_id_of
from service.rank.question_fast import read_columnar
from service.rank.strict import check_strict
from service.watch.drift import Drift
from service.watch.shadow import ShadowScoring

TIMEOUT_HEADER = "X-Request-Timeout-Ms"

# The body, what is known of the request, and its deadline in seconds of time.perf_counter.
Answer = Callable[[bytes, RequestRecord, float | None], Reply]

_log = logging.getLogger(LOGGER)


class Ranking:
    """Scoring of requests by the models of a service."""

    def __init__(
        self,
        store: ModelStore,
        metrics: Metrics,
        impressions: ImpressionLog | None,
        shadow: ShadowScoring,
        drift: Drift,
        max_candidates: int,
        unknown_candidates: UnknownCandidates,
    ) -> None:
        self.store = store
        self.metrics = metrics
        self.impressions = impressions
        self.shadow = shadow
        self.drift = drift
        self.max_candidates = max_candidates
        self.unknown_candidates = unknown_candidates

    def answer(self, body: bytes, record: RequestRecord, deadline: float | None) -> Reply:
        """The answer's body. Runs in a scoring thread. `deadline` is on the clock of time.perf_counter, in seconds."""
        most = self.max_candidates
        question = read_columnar(body)
        if question is None:
            document = decode(body, most)
            record.request_id = request_id_of(document) or record.request_id
            question = parse(document, most)
        record.request_id = question.request_id or record.request_id
        check_count(question, most)
        model = self.store.find(question.model, question.version, record.request_id)
        name = self.chosen(model, question.value_model, "value_model", record)
        record.know_candidates(len(question.ids))
        request_columns, candidate_columns = columns(question, model.scorer.encoder)
        named = named_candidates(model, question, candidate_columns, self.unknown_candidates)
        record.uses_catalogue = named is not None and named.uses_catalogue
        if question.strict:
            check_strict(question, model.scorer.schema, None if named is None else named.is_known_N)

        def score() -> Scored:
            if named is None:
                return model.scorer.score(request_columns, candidate_columns, len(question.ids))
            return model.scorer.score_named(request_columns, named)

        scored, score_N = self.scores(model, name, score, record, deadline)
        value_model = model.value_models[name]
        explanation = None
        if question.explain:
            try:
                explanation = explain(model.scorer, value_model, request_columns, candidate_columns, named, scored)
            except NonFiniteScoresError as error:
                raise _not_finite(record, str(error)) from None
        both = (request_columns, candidate_columns)
        self.hand_on(record, model, name, both, question, question, scored.answers_NO, score_N, len(body))
        head = {
            "request_id": record.request_id,
            "model": model.name,
            "model_version": model.scorer.version,
            "value_model": name,
            "value_model_version": value_model.version,
        }
        return Reply(write(head, question, model.scorer.outputs, score_N, scored.answers_NO, explanation))

    def hand_on(
        self,
        record: RequestRecord,
        model: ServedModel,
        value_model: str,
        columns: tuple[Mapping[str, Column], Mapping[str, Column]],
        question: Question | None,
        asked: Asked,
        answers_NO: NDArray[np.float32],
        score_N: NDArray[np.float64],
        body_bytes: int,
    ) -> None:
        """Give a scored request to the shadow version, to drift and to the impression log, as far as each wants it.

        `columns` are the request's and the candidates', `asked` is what is logged of them."""
        self.shadow.take_request(record, model, value_model, columns, question, answers_NO, score_N)
        self.drift.take_request(model, columns, answers_NO, uses_catalogue=record.uses_catalogue)
        if self.impressions is not None:
            scorer = model.scorer
            self.impressions.take_request(
                record, asked, scorer.outputs, score_N, answers_NO, body_bytes, scorer.encoder.integers
            )

    def chosen(self, model: ServedModel, asked: str | None, path: str, record: RequestRecord) -> str:
        """The name of the value model that the request names at `path`. It and the model are noted in the record."""
        name = asked or DEFAULT
        if name not in model.value_models:
            has = ", ".join(model.value_models.names)
            rule = f"no such value model, {told(name)}; model '{model.name}' has: {has}"
            raise Problem.wrong_content([Fault(path, rule)])
        record.model, record.model_version = model.name, model.scorer.version
        record.value_model, record.value_model_version = name, model.value_models[name].version
        return name

    def scores(
        self,
        model: ServedModel,
        value_model: str,
        score: Callable[[], Scored],
        record: RequestRecord,
        deadline: float | None,
    ) -> tuple[Scored, NDArray[np.float64]]:
        """Answers of `score` and their combined score_N, counted and measured. Raises Problem: 500 not finite, 504."""
        check_deadline(deadline)
        started = time.perf_counter()
        try:
            scored = score()
        except NonFiniteScoresError as error:
            self.store.recheck(model)
            raise _not_finite(record, str(error)) from None
        with np.errstate(over="ignore", invalid="ignore"):  # the next line is what looks for it
            score_N = model.value_models[value_model].score(scored.answers_NO)
        if not np.isfinite(score_N).all():
            raise _not_finite(record, f"value model '{value_model}' gave a combined score that is not finite")
        self.metrics.inference_seconds.observe_soon(time.perf_counter() - started)
        self.metrics.candidates.observe_soon(len(score_N))
        model.metrics.observe(scored, value_model, score_N)
        return scored, score_N


def check_deadline(deadline: float | None) -> None:
    """Raises Problem 504 once it has passed: an answer that is too late is not computed."""
    if deadline is not None and time.perf_counter() >= deadline:
        raise deadline_passed()


def _not_finite(record: RequestRecord, reason: str) -> Problem:
    _log.error("scores are not finite", extra={"fields": {"request_id": record.request_id, "reason": reason}})
    return Problem(500, "the model's scores are not finite, so none is given", reason="not_finite")


def deadline_passed() -> Problem:
    """504."""
    return Problem(504, f"the deadline of {TIMEOUT_HEADER} has passed", reason="deadline")
