"""One scored request as a line of the impression log, which service/impressions/record.py reads.

In: a scored request. Out: a line of JSON, candidates in request order:
`{"format": 1, "time", "request_id", "model", "model_version", "value_model", "value_model_version", "top_k",
"catalogue", "user", "candidates": {"id", "features"}, "score", "tasks"}`. `user` and `candidates` are those of POST
/v1/rank, always as columns, with null where a row has no value. /v2 has no ids of candidates: their positions take
their place. `catalogue` says whether a catalogue gave features beside them. Scores have the digits of the answer. In
place of `user` and `candidates` there may be `"hashes": {"user", "candidate_id", "features"}`: XXH3-64 of the user, and
of each candidate's id and features, as JSON without spaces, keys sorted, what is null left out.

Shapes: N candidates, O outputs.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray

from service.rank.scored_request import ReceivedRequest, ScoredRequest

# What a request takes in memory, over its text: the text and arrays, or the objects of rows.
_COLUMNS_COST, _ROWS_COST = 2, 10

_encoder = msgspec.json.Encoder()
_canonical = msgspec.json.Encoder(order="sorted")


class Impression(NamedTuple):
    """A scored request as it is logged. `held_bytes` is about what keeping it costs. Features of `integers` may have
    been sent as strings of digits. It keeps no model version alive."""

    time: datetime
    head: dict[str, str]
    uses_catalogue: bool
    received: ReceivedRequest
    outputs: Sequence[str]
    score_N: NDArray[np.float64]
    answers_NO: NDArray[np.float32]
    held_bytes: int
    integers: frozenset[str]

    @classmethod
    def of(cls, request: ScoredRequest) -> "Impression":
        """The impression of a request that has just been scored."""
        encoded, answers_NO, score_N = request.encoded, request.answers.answers_NO, request.score_N
        received, scorer = encoded.received, encoded.model.scorer
        held = encoded.body_bytes * (_COLUMNS_COST if received.rows is None else _ROWS_COST)
        return cls(
            datetime.now(UTC),
            encoded.head,
            encoded.uses_catalogue,
            received,
            scorer.outputs,
            score_N,
            answers_NO,
            held + score_N.nbytes + answers_NO.nbytes,
            scorer.encoder.integers,
        )

    def line(self, *, is_hashed: bool) -> bytes:
        """The line, with its end."""
        received = self.received
        line = _encoder.encode(
            {
                "format": 1,
                "time": self.time.isoformat(timespec="milliseconds"),
                **self.head,
                "top_k": received.top_k,
                "catalogue": self.uses_catalogue,
                **(_hashes(received, self.integers) if is_hashed else _values(received)),
                "score": _as_answered(self.score_N),
                "tasks": dict(zip(self.outputs, map(_as_answered, self.answers_NO.T), strict=True)),
            }
        )
        # Columns are passed on as the client wrote them. In JSON a line may break only between values.
        return line.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n"


def _as_answered(scores_N: NDArray[np.floating]) -> msgspec.Raw:
    """Numbers as answers have them (service/rank/answer.py)."""
    return msgspec.Raw(orjson.dumps(np.ascontiguousarray(scores_N), option=orjson.OPT_SERIALIZE_NUMPY))


def _values(received: ReceivedRequest) -> dict[str, Any]:
    if received.rows is None:
        features = received.written()
    else:
        names = dict.fromkeys(chain.from_iterable(received.rows))
        features = {name: [row.get(name) for row in received.rows] for name in names}
    return {"user": received.user, "candidates": {"id": received.ids, "features": features}}


def _hashes(received: ReceivedRequest, integers: frozenset[str]) -> dict[str, Any]:
    rows = received.rows
    if rows is None:
        written = received.written()
        columns = [_decoded(column) for column in written.values()]
        rows = [dict(zip(written, values, strict=True)) for values in zip(*columns, strict=True)]
    return {
        "hashes": {
            "user": _hash(_present(received.user, integers)),
            "candidate_id": list(map(_hash, received.ids)),
            # Where a catalogue knows the candidates, a request may give no features at all.
            "features": [_hash(_present(row, integers)) for row in rows] or [_hash({})] * len(received.ids),
        }
    }


def _decoded(column: Any) -> Any:
    return msgspec.json.decode(column) if isinstance(column, msgspec.Raw) else column


def _present(features: dict[str, Any], integers: frozenset[str]) -> dict[str, Any]:
    """Features that have a value. 17 and "17" are one where ids are integers."""
    present = {name: value for name, value in features.items() if value is not None}
    return {name: _integer(value) if name in integers else value for name, value in present.items()}


def _integer(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_integer, value))
    return int(value) if isinstance(value, str) else value


def _hash(value: object) -> int:
    return xxhash.xxh3_64_intdigest(_canonical.encode(value))
