"""Several scoring requests in one body: POST /v1/rank:batch.

In: the body, in a scoring thread. Out: an answer or a problem for each request, in their order. The steps are those of
service/pipeline.py, request by request. Only encoding and scores are computed together, for all requests that one
version answers.
Size, number of candidates, admission and deadline are the body's, and so is the refusal that they end in. A request has
its own id, user, version, arm, policy, impression and log line.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from model.features.encode_together import ReadBlocks, encode_together
from model.features.encoder import Encoded, encoded_row
from model.scorer.scorer import NamedCandidates, NonFiniteScoresError, Scored, Scorer
from model.scorer.together import score_together
from service.base.errors import Fault, Problem, problem_response
from service.base.record import RequestRecord
from service.http.middleware import failed
from service.metrics.metrics import BATCH, RANK, Metrics
from service.pipeline import Ranking, Scoring, Waiting, check_deadline
from service.rank.answer import Reply
from service.rank.question import Question
from service.rank.read import BatchedRequest, read_batch, too_many_candidates
from service.rank.scored_request import EncodedRequest, ReadRequest, ScoredRequest
from service.state.users import FoundUser


@dataclass(slots=True)
class _Part:
    """A request of a batch on its way, which ends in a problem or in the body of its answer."""

    request: BatchedRequest
    record: RequestRecord
    question: Question | None = None
    found: FoundUser | None = None
    read: ReadRequest | None = None
    encoded: EncodedRequest | None = None
    scored: ScoredRequest | None = None
    answer: bytes | None = None
    problem: Problem | None = None

    def attempt(self, step: Callable[["_Part"], None]) -> None:
        """Take a step, unless one before it ended in a problem."""
        if self.problem is not None:
            return
        try:
            step(self)
        except Problem as problem:
            self._end(problem)
        except Exception as error:  # one that goes wrong does not take the others along
            self._end(failed(error, self.record))

    def _end(self, problem: Problem) -> None:
        problem.__traceback__ = None
        self.problem = problem
        self.record.status = problem.status


@dataclass(frozen=True, slots=True)
class BatchRanking:
    """Scoring of batches by what scores single requests."""

    ranking: Ranking
    metrics: Metrics

    def answer(self, body: bytes, record: RequestRecord, deadline: float | None) -> Reply | Waiting:
        """The answer's body. Runs in a scoring thread. `deadline` is on the clock of time.perf_counter, in seconds.
        Raises Problem for what is wrong with the body as a whole: 400, 413, 422, 504."""
        parts = [_Part(request, _record_of_part(record)) for request in read_batch(body)]
        candidates = 0
        for part in parts:
            candidates += self._read(part, candidates)
        record.count_candidates(candidates, len(parts))
        _check_ids(parts)
        for part in parts:
            part.attempt(partial(self._begin_lookup, deadline))
        return self._answer_when_found(parts, record, deadline)

    def _read(self, part: _Part, before: int) -> int:
        """Parse a request, and return its number of candidates. Raises Problem 413 where they and those `before` it are
        too many together."""

        def read(part: _Part) -> None:
            part.question = part.request.read(self.ranking.max_candidates, part.record)

        part.attempt(read)
        if part.problem is not None and part.problem.status == 413:
            raise part.problem
        count = 0 if part.question is None else len(part.question.ids)
        if before + count > self.ranking.max_candidates:
            raise too_many_candidates(before + count, "requests", self.ranking.max_candidates)
        return count

    def _begin_lookup(self, deadline: float | None, part: _Part) -> None:
        assert part.question is not None
        model = self.ranking.store.stateful_model(part.question.options.model)
        if model is not None:
            part.found = self.ranking.users.find(model, part.question.user, None, deadline)
            part.record.lookup = part.found.lookup

    def _answer_when_found(self, parts: list[_Part], record: RequestRecord, deadline: float | None) -> Reply | Waiting:
        """The answer, once no look-up of a user is waited for. They all run meanwhile."""
        for part in reversed(parts):  # the last one began last, and ends after most
            found = part.found
            if found is not None and not found.has_ended:
                assert found.lookup is not None, "without one there is no waiting"
                return Waiting(found.lookup, partial(self._answer_when_found, parts, record, deadline))
        for part in parts:
            part.attempt(self._read_features)
        check_deadline(deadline)
        self._score(parts)
        for part in parts:
            part.attempt(self._finish)
        record.parts = [part.record for part in parts]
        return Reply(b'{"answers":[' + b",".join(map(self._written, parts)) + b"]}")

    def _read_features(self, part: _Part) -> None:
        assert part.question is not None
        part.read = self.ranking.read(part.question, part.request.size, part.record, part.found)

    def _score(self, parts: Iterable[_Part]) -> None:
        """Encode and score the requests, those of one version together. Where a score is not finite, each alone."""
        by_scorer: dict[Scorer, list[_Part]] = {}
        for part in parts:
            if part.problem is None:
                assert part.read is not None
                by_scorer.setdefault(part.read.model.scorer, []).append(part)
        for scorer, of_version in by_scorer.items():
            _encode(scorer, of_version)
            started = time.perf_counter()
            answers: list[Scored | None]
            try:
                answers = [*score_together(scorer, [_blocks(part) for part in of_version])]
            except NonFiniteScoresError:  # of one of them, and its problem names it
                answers = [None] * len(of_version)
            for part, scored in zip(of_version, answers, strict=True):
                part.attempt(partial(self._combine, scored))
            self.metrics.inference_seconds.observe_soon(time.perf_counter() - started)

    def _combine(self, scored: Scored | None, part: _Part) -> None:
        assert part.encoded is not None
        answers = self.ranking.answers(part.encoded, part.record) if scored is None else scored
        part.scored = self.ranking.combine(part.encoded, answers, part.record)

    def _finish(self, part: _Part) -> None:
        assert part.scored is not None
        assert part.question is not None
        part.answer = self.ranking.finish(part.scored, part.record, explains=bool(part.question.options.explain))
        part.record.status = 200

    def _written(self, part: _Part) -> bytes:
        problem = part.problem
        if problem is None:
            assert part.answer is not None
            return part.answer
        if problem.reason is not None:
            self.metrics.rejected.labels(problem.reason).inc()
        return bytes(problem_response(problem, part.record.request_id).body)


def scorings(ranking: Ranking, metrics: Metrics) -> dict[str, Scoring]:
    """Scoring of the bodies of a route, by its path. In a batch no user is guessed before it is parsed."""
    batch = Scoring(BatchRanking(ranking, metrics).answer, lambda body, deadline: None)
    return {RANK: ranking.scoring, BATCH: batch}


def _record_of_part(record: RequestRecord) -> RequestRecord:
    """The record of a request in a batch, with an id of its own until its body names one."""
    return RequestRecord(
        secrets.token_hex(16), record.endpoint, record.key, trace_id=record.trace_id, batch=record.request_id
    )


def _encode(scorer: Scorer, parts: Sequence[_Part]) -> None:
    """Encode requests of one version, candidates that its catalogue does not know together."""
    described: list[tuple[_Part, ReadRequest]] = []
    for part in parts:
        read = part.read
        assert read is not None
        if read.named is None:
            described.append((part, read))
        else:
            part.encoded = read.encoded(encoded_row(read.row), read.named)
    blocks = [ReadBlocks(read.row, read.columns, len(read.received.ids)) for _, read in described]
    for (part, read), both in zip(described, encode_together(scorer.encoder, blocks), strict=True):
        part.encoded = read.encoded(*both)


def _blocks(part: _Part) -> tuple[Encoded, Encoded | NamedCandidates]:
    assert part.encoded is not None
    return part.encoded.request, part.encoded.candidates


def _check_ids(parts: Iterable[_Part]) -> None:
    """Raise Problem 422 for a request id that two requests have: nothing could tell their impressions apart."""
    seen: dict[str, int] = {}
    faults = []
    for number, part in enumerate(parts):
        first = seen.setdefault(part.record.request_id, number)
        if first != number:
            faults.append(Fault(f"requests[{number}].request_id", f"requests[{first}] has it too; give each its own"))
    if faults:
        raise Problem.wrong_content(faults)
