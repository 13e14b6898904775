"""Scores -> the body of an answer: ranked, cut to top_k, in the shape of the question.

In: a question and its scores in request order. Out: JSON bytes. Descending score, ties by request order; work over
candidates is done by numpy and by map(), so the columnar shape runs no bytecode per candidate.

Shapes: N candidates, T tasks, K of them answered.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.explain import Explanation
from service.wire import Question

_encoder = msgspec.json.Encoder()


class Reply(NamedTuple):
    """A body and the headers that go with it, beside its length."""

    body: bytes
    media_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


def ranking(score_N: NDArray[np.float64], top_k: int | None) -> NDArray[np.intp]:
    """Positions of the best `top_k` candidates (None or more than N: all), best first, ties by request order."""
    return np.argsort(-score_N, kind="stable")[:top_k]


def write(
    head: dict[str, Any],
    question: Question,
    tasks: Sequence[str],
    score_N: NDArray[np.float64],
    answers_NT: NDArray[np.float32],
    explanation: Explanation | None = None,
) -> bytes:
    """The answer's body: `head` (ids and versions), the ranked candidates, and `explain` where there is one."""
    order_K = ranking(score_N, question.top_k)
    ids = list(map(question.ids.__getitem__, order_K.tolist()))
    scores = score_N[order_K].tolist()
    by_task = dict(zip(tasks, answers_NT[order_K].T.tolist(), strict=True))
    candidates: Any = {"id": ids, "score": scores, "tasks": by_task}
    if question.rows is not None:
        candidates = [
            {"id": identifier, "score": score, "tasks": dict(zip(tasks, answers, strict=True))}
            for identifier, score, *answers in zip(ids, scores, *by_task.values(), strict=True)
        ]
    explained = {} if explanation is None else {"explain": explanation.of(order_K)}
    return _encoder.encode({**head, "candidates": candidates, **explained})
