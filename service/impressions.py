"""One scored request as a line of the impression log, which service/logged.py reads.

In: a question and its scores. Out: a line of JSON, candidates in request order:
`{"format": 1, "time", "request_id", "model", "model_version", "value_model", "value_model_version", "top_k",
"catalogue", "user", "candidates": {"id", "features"}, "score", "tasks"}`; `user` and `candidates` are those of POST
/v1/rank, as columns whatever the shape of the request, with null where a row has no value; `catalogue` says whether a
catalogue gave features beside them. Scores have the digits of the answer. In place of `user` and `candidates` there may
be `"hashes": {"user", "candidate_id", "features"}`: XXH3-64 of the user, and of each candidate's id and features, as
JSON without spaces, keys sorted, what is null left out.

Shapes: N candidates, T tasks.
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

from service.request_log import RequestRecord
from service.wire import Question

# What a request takes in memory, over its text: the text and arrays, or the objects of rows.
_COLUMNS_COST, _ROWS_COST = 2, 10

_encoder = msgspec.json.Encoder()
_canonical = msgspec.json.Encoder(order="sorted")


class Impression(NamedTuple):
    """A scored request; `held_bytes` is about what keeping it costs."""

    time: datetime
    record: RequestRecord
    question: Question
    tasks: Sequence[str]
    score_N: NDArray[np.float64]
    answers_NT: NDArray[np.float32]
    held_bytes: int

    @classmethod
    def of(
        cls,
        record: RequestRecord,
        question: Question,
        tasks: Sequence[str],
        score_N: NDArray[np.float64],
        answers_NT: NDArray[np.float32],
        body_bytes: int,
    ) -> "Impression":
        """The impression of a request that has just been scored."""
        held = (
            body_bytes * (_COLUMNS_COST if question.rows is None else _ROWS_COST) + score_N.nbytes + answers_NT.nbytes
        )
        return cls(datetime.now(UTC), record, question, tasks, score_N, answers_NT, held)

    def line(self, *, is_hashed: bool) -> bytes:
        """The line, with its end."""
        question, record = self.question, self.record
        line = _encoder.encode(
            {
                "format": 1,
                "time": self.time.isoformat(timespec="milliseconds"),
                "request_id": record.request_id,
                "model": record.model,
                "model_version": record.model_version,
                "value_model": record.value_model,
                "value_model_version": record.value_model_version,
                "top_k": question.top_k,
                "catalogue": record.uses_catalogue,
                **(_hashes(question) if is_hashed else _values(question)),
                "score": _as_answered(self.score_N),
                "tasks": dict(zip(self.tasks, map(_as_answered, self.answers_NT.T), strict=True)),
            }
        )
        # Columns are passed on as the client wrote them; in JSON a line may break between values alone.
        return line.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n"


def _as_answered(scores_N: NDArray[np.floating]) -> msgspec.Raw:
    """Numbers as answers have them (service/answers.py)."""
    return msgspec.Raw(orjson.dumps(np.ascontiguousarray(scores_N), option=orjson.OPT_SERIALIZE_NUMPY))


def _values(question: Question) -> dict[str, Any]:
    if question.rows is None:
        features = question.written()
    else:
        names = dict.fromkeys(chain.from_iterable(question.rows))
        features = {name: [row.get(name) for row in question.rows] for name in names}
    return {"user": question.user, "candidates": {"id": question.ids, "features": features}}


def _hashes(question: Question) -> dict[str, Any]:
    rows = question.rows
    if rows is None:
        written = question.written()
        columns = [_decoded(column) for column in written.values()]
        rows = [dict(zip(written, values, strict=True)) for values in zip(*columns, strict=True)]
    return {
        "hashes": {
            "user": _hash(_present(question.user)),
            "candidate_id": list(map(_hash, question.ids)),
            # Where a catalogue knows the candidates, a request may give no features at all.
            "features": [_hash(_present(row)) for row in rows] or [_hash({})] * len(question.ids),
        }
    }


def _decoded(column: Any) -> Any:
    return msgspec.json.decode(column) if isinstance(column, msgspec.Raw) else column


def _present(features: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in features.items() if value is not None}


def _hash(value: object) -> int:
    return xxhash.xxh3_64_intdigest(_canonical.encode(value))
