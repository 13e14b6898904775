"""Scores -> the body of an answer: ranked, cut to top_k, in the shape of the question.

In: a question and its scores in request order. Out: JSON bytes. Descending score, ties by request order. orjson writes
the arrays as they are: no Python object is made for a score, and a float32 has the digits that distinguish it from any
other.

Shapes: N candidates, O outputs, K of them answered.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from service.base.ranking import ranking
from service.rank.explain import Explanation
from service.rank.question import Question


class Reply(NamedTuple):
    """A body and the headers that go with it, beside its length."""

    body: bytes
    media_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


def write(
    head: dict[str, Any],
    question: Question,
    tasks: Sequence[str],
    score_N: NDArray[np.float64],
    answers_NO: NDArray[np.float32],
    explanation: Explanation | None = None,
) -> bytes:
    """The answer's body: `head` (ids and versions), the ranked candidates, and `explain` where there is one."""
    order_K = ranking(score_N, question.top_k)
    names = question.ids
    ids = [names[position] for position in order_K.tolist()]
    score_K = score_N.take(order_K)
    answers_TK = answers_NO.T.take(order_K, 1)
    candidates: Any = {"id": ids, "score": score_K, "tasks": dict(zip(tasks, answers_TK, strict=True))}
    if question.rows is not None:
        candidates = [
            {"id": identifier, "score": score, "tasks": dict(zip(tasks, answers, strict=True))}
            for identifier, score, *answers in zip(ids, score_K, *answers_TK, strict=True)
        ]
    explained = {} if explanation is None else {"explain": explanation.of(order_K)}
    return orjson.dumps({**head, "candidates": candidates, **explained}, option=orjson.OPT_SERIALIZE_NUMPY)
