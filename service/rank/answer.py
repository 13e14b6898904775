"""Scores -> the body of an answer: ranked, cut to top_k, in the shape of the question.

In: a scored request. Out: JSON bytes. Descending score, ties by request order, or the order of a policy. orjson writes
the arrays as they are: no Python object is made for a score, and a float32 has the digits that distinguish it from any
other.

Shapes: N candidates, O outputs, K of them answered.
"""

from operator import itemgetter
from typing import Any, NamedTuple

import orjson

from service.rank.explain import Explanation
from service.rank.scored_request import ScoredRequest


class Reply(NamedTuple):
    """A body and the headers that go with it, beside its length."""

    body: bytes
    media_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    status: int = 200

    @property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """All headers of the answer."""
        return [(b"content-type", self.media_type), (b"content-length", b"%d" % len(self.body)), *self.headers]


def write(request: ScoredRequest, explanation: Explanation | None = None) -> bytes:
    """The answer's body: identifiers and versions, the ranked candidates, and `explain` where there is one."""
    encoded, score_N = request.encoded, request.score_N
    received, outputs = encoded.received, encoded.model.scorer.outputs
    order_K = request.order_K
    names = received.ids
    # One call for all. Of a single one it would make no tuple.
    ids = list(itemgetter(*order_K.tolist())(names)) if len(order_K) > 1 else [names[row] for row in order_K]
    score_K = score_N.take(order_K)
    answers_OK = request.answers.answers_NO.T.take(order_K, 1)
    candidates: Any = {"id": ids, "score": score_K, "tasks": dict(zip(outputs, answers_OK, strict=True))}
    if received.rows is not None:
        candidates = [
            {"id": identifier, "score": score, "tasks": dict(zip(outputs, answers, strict=True))}
            for identifier, score, *answers in zip(ids, score_K, *answers_OK, strict=True)
        ]
    calibration = request.answers.calibration
    calibrated = {} if calibration is None else {"calibration": calibration}
    placed, dropped = request.placed, {}
    if placed is not None:
        dropped = {"dropped": {stage: [names[row] for row in rows] for stage, rows in placed.dropped.items()}}
    explained = {} if explanation is None else {"explain": explanation.of(order_K)}
    experiments = {"experiments": encoded.experiments.arms} if encoded.experiments.arms else {}
    body = {**encoded.head, **calibrated, **experiments, "candidates": candidates, **dropped, **explained}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
