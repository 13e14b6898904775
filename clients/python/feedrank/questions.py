"""Requests for rankings, alone or several in a call, and what the service's reply makes of each, counted."""

from collections.abc import Mapping, Sequence
from typing import Any

from feedrank.call import Budget, Call, new_id, reason_of
from feedrank.counts import Counter
from feedrank.wire import (
    Ranking,
    RankRequest,
    RefusedError,
    UnavailableError,
    answers_of,
    encode,
    faults_of,
    ranked_ids,
)

RANK, BATCH = "/v1/rank", "/v1/rank:batch"


class Question:
    """A request with its id and the caller's fallback."""

    def __init__(
        self, request: RankRequest | Mapping[str, Any], fallback: Sequence[str] | None, *, strict: bool
    ) -> None:
        given = request.get("request_id")
        self.request_id = str(given) if given is not None else new_id()
        added = {"strict": True} if strict and "strict" not in request else {}
        self.document = {**request, "request_id": self.request_id, **added}
        self._fallback = fallback

    def end(
        self, counter: Counter, status: int, document: Mapping[str, Any], reason: str
    ) -> Ranking | RefusedError | UnavailableError:
        """The ranking, or the error that stands for it, counted."""
        ids = ranked_ids(document) if status == 200 else None
        if ids is not None:
            counter.add("answered")
            return Ranking(ids, self.request_id, dict(document))
        if 400 <= status < 500 and status not in (408, 429):
            counter.add("refused", reason=reason)
            return RefusedError(self.request_id, status, str(document.get("detail", "")), faults_of(document))
        if self._fallback is None:
            counter.add("unavailable", reason=reason)
            return UnavailableError(self.request_id, reason)
        counter.add("fallbacks", reason=reason)
        return Ranking(list(self._fallback), self.request_id, None, reason)


class RankCall(Call):
    """A request for one ranking. Raises ValueError where it is no JSON."""

    def __init__(self, question: Question, timeout: float, budget: Budget, counter: Counter) -> None:
        super().__init__(RANK, question.request_id, encode(question.document), timeout, budget, counter)
        self._question = question

    def result(self) -> Ranking:
        """The ranking. Raises RefusedError, UnavailableError."""
        ended = self._question.end(self.counter, self.status, self.document, self.reason)
        if isinstance(ended, Exception):
            raise ended
        return ended


class BatchCall(Call):
    """A request for several rankings. Raises ValueError where it is no JSON."""

    def __init__(self, questions: Sequence[Question], timeout: float, budget: Budget, counter: Counter) -> None:
        body = encode({"requests": [question.document for question in questions]})
        super().__init__(BATCH, new_id(), body, timeout, budget, counter)
        self._questions = questions

    def results(self) -> list[Ranking | RefusedError | UnavailableError]:
        """Ranking or error of each request, in their order. Raises RefusedError where all of it is refused."""
        answers = answers_of(self.document, len(self._questions)) if self.status == 200 else None
        if answers is None:
            replies = [(self.status, self.document, self.reason)] * len(self._questions)
        else:
            replies = [_reply(answer) for answer in answers]
        ended = [question.end(self.counter, *reply) for question, reply in zip(self._questions, replies, strict=True)]
        if answers is None and isinstance(ended[0], RefusedError):
            # Of the whole: the paths of its faults say which request each is about.
            raise RefusedError(self.request_id, ended[0].status, ended[0].detail, ended[0].faults)
        return ended


def _reply(answer: Mapping[str, Any]) -> tuple[int, dict[str, Any], str]:
    """Status, document and reason of an answer or a problem in a batch."""
    status = answer.get("status", 200)
    if not isinstance(status, int):
        return 0, {}, "no answer"
    return status, dict(answer), reason_of(status)
