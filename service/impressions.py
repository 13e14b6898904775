"""One scored request as a line of the impression log, and back: what replay and training read.

In: a question and its scores. Out: a line of JSON, candidates in request order:
`{"format": 1, "time", "request_id", "model", "model_version", "value_model", "value_model_version", "top_k",
"catalogue", "user", "candidates": {"id", "features"}, "score", "tasks"}`; `user` and `candidates` are those of POST
/v1/rank, as columns whatever the shape of the request, with null where a row has no value; `catalogue` says whether a
catalogue gave features beside them. Scores have the digits of the answer.

Shapes: N candidates, T tasks.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from service.request_log import RequestRecord
from service.wire import Question

# What a request takes in memory, over its text: the text and arrays, or the objects of rows.
_COLUMNS_COST, _ROWS_COST = 2, 10

_encoder = msgspec.json.Encoder()


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

    def line(self) -> bytes:
        """The line, with its end."""
        question, record = self.question, self.record
        if question.rows is None:
            features = question.written()
        else:
            names = dict.fromkeys(chain.from_iterable(question.rows))
            features = {name: [row.get(name) for row in question.rows] for name in names}
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
                "user": question.user,
                "candidates": {"id": question.ids, "features": features},
                "score": _as_answered(self.score_N),
                "tasks": dict(zip(self.tasks, map(_as_answered, self.answers_NT.T), strict=True)),
            }
        )
        # Columns are passed on as the client wrote them; in JSON a line may break between values alone.
        return line.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n"


def _as_answered(scores_N: NDArray[np.floating]) -> msgspec.Raw:
    """Numbers as answers have them (service/answers.py)."""
    return msgspec.Raw(orjson.dumps(np.ascontiguousarray(scores_N), option=orjson.OPT_SERIALIZE_NUMPY))


class LoggedCandidates(msgspec.Struct):
    """The candidates of a logged request, as columns."""

    id: list[str]
    features: dict[str, list[Any]]


class Logged(msgspec.Struct):
    """A line of the log."""

    format: Literal[1]
    time: str
    request_id: str
    model: str
    model_version: str
    value_model: str
    value_model_version: str
    user: dict[str, Any]
    candidates: LoggedCandidates
    score: list[float]
    tasks: dict[str, list[float]]
    catalogue: bool = False


_decoder = msgspec.json.Decoder(Logged)


def read_line(line: bytes) -> Logged:
    """The request of a line. Raises ValueError saying what is wrong with it."""
    try:
        logged = _decoder.decode(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    rows = len(logged.candidates.id)
    if not rows:
        raise ValueError("no candidates")
    lengths = {
        "score": logged.score,
        **{f"tasks.{name}": column for name, column in logged.tasks.items()},
        **{f"candidates.features.{name}": column for name, column in logged.candidates.features.items()},
    }
    for name, column in lengths.items():
        if len(column) != rows:
            raise ValueError(f"{name}: {len(column)} values for {rows} candidates")
    return logged
