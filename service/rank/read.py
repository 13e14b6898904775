"""The body of POST /v1/rank -> `Question`.

A columnar body without a fault is read by service.rank.question_fast. Any other is decoded as service.rank.wire has it.
Where that fails, the document is walked to name all its faults.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any, NamedTuple

import msgspec

from service.base.errors import Fault, Problem
from service.base.json_object import json_object
from service.base.record import RequestRecord, is_request_id
from service.rank.faults import faults_of_body
from service.rank.question import Question
from service.rank.question_fast import read_columnar, read_columnar_batch
from service.rank.wire import MAX_REQUESTS, BatchRequest, CandidateColumns, RankRequest

_decoder = msgspec.json.Decoder(RankRequest)
_batch_decoder = msgspec.json.Decoder(BatchRequest)
_batch_type = msgspec.inspect.type_info(BatchRequest)
_request_type = msgspec.inspect.type_info(RankRequest)
# A body with more bytes for each candidate that is allowed has its rows counted before they are decoded.
_BYTES_A_ROW = 512


class _Rows(msgspec.Struct):
    candidates: list[msgspec.Raw]
    request_id: Any = None


_rows_decoder = msgspec.json.Decoder(_Rows)


def read_question(body: bytes, max_candidates: int, record: RequestRecord) -> Question:
    """The question of a body, whose request id the record takes. Raises Problem: 400 not JSON, 413 too many candidates,
    422 with every fault."""
    question = read_columnar(body)
    if question is None:
        question = read_general(body, max_candidates, record)
    return _taken(question, max_candidates, record)


def _taken(question: Question, max_candidates: int, record: RequestRecord) -> Question:
    """The question, whose request id the record takes. Raises Problem 413."""
    record.request_id = question.options.request_id or record.request_id
    if question.rows is None:
        _check_count(len(question.ids), "candidates.id", max_candidates)
    return question


def read_general(body: bytes, max_candidates: int, record: RequestRecord) -> Question:
    """The question of a body of either shape. Raises Problem as `read_question` does."""
    if len(body) > _BYTES_A_ROW * max_candidates:
        with suppress(ValueError, RecursionError):
            counted = _rows_decoder.decode(body)
            _take_id(counted.request_id, record)
            _check_count(len(counted.candidates), "candidates", max_candidates)
    try:
        request = _decoder.decode(body)
    except (ValueError, RecursionError):
        document = json_object(body)
        _take_id(document.get("request_id"), record)
        _check_counts(document.get("candidates"), max_candidates)
        raise Problem.wrong_content(faults_of_body(body, document, _request_type)) from None
    _take_id(request.request_id, record)
    if not isinstance(request.candidates, CandidateColumns):
        _check_count(len(request.candidates), "candidates", max_candidates)
    return Question.of(request)


class BatchedRequest(NamedTuple):
    """A request of a batch: its size in bytes, and `read_question` of it."""

    size: int
    read: Callable[[int, RequestRecord], Question]


def read_batch(body: bytes) -> list[BatchedRequest]:
    """The requests of a batch. Raises Problem: 400 not JSON, 413 too many of them, 422.

    Where all are columns without a fault they are parsed at once. Their sizes are then the mean of all."""
    texts = cache(partial(_texts, body))  # of which a log wants some
    questions = read_columnar_batch(body, MAX_REQUESTS, lambda number: texts()[number])
    if questions is not None:
        size = len(body) // len(questions)
        return [BatchedRequest(size, partial(_taken, question)) for question in questions]
    return [BatchedRequest(len(text), partial(read_question, text)) for text in _texts(body)]


def _texts(body: bytes) -> list[bytes]:
    """The requests of a batch, each as it was written. Raises Problem as `read_batch` does."""
    try:
        requests = _batch_decoder.decode(body).requests
    except (ValueError, RecursionError):
        raise Problem.wrong_content(faults_of_body(body, json_object(body), _batch_type)) from None
    if len(requests) > MAX_REQUESTS:
        message = f"{len(requests)} requests, {MAX_REQUESTS} at most; send them in several batches"
        raise Problem(413, message, faults=[Fault("requests", message)], reason="too_many_candidates")
    return list(map(bytes, requests))


def too_many_candidates(count: int, place: str, max_candidates: int) -> Problem:
    """413."""
    message = f"{count} candidates, {max_candidates} at most; send them in several requests"
    return Problem(413, message, faults=[Fault(place, message)], reason="too_many_candidates")


def _take_id(given: object, record: RequestRecord) -> None:
    if is_request_id(given):
        record.request_id = str(given)


def _check_counts(candidates: object, max_candidates: int) -> None:
    """Raise Problem 413 for too many candidates of any document."""
    if isinstance(candidates, list):
        _check_count(len(candidates), "candidates", max_candidates)
    elif isinstance(candidates, dict) and isinstance(ids := candidates.get("id"), list):
        _check_count(len(ids), "candidates.id", max_candidates)


def _check_count(count: int, place: str, max_candidates: int) -> None:
    if count > max_candidates:
        raise too_many_candidates(count, place, max_candidates)
