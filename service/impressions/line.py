"""One scored request as a line of the impression log, which service/impressions/record.py reads.

In: a question and its scores. Out: a line of JSON, candidates in request order:
`{"format": 1, "time", "request_id", "model", "model_version", "value_model", "value_model_version", "top_k",
"catalogue", "user", "candidates": {"id", "features"}, "score", "tasks"}`. `user` and `candidates` are those of POST
/v1/rank, always as columns, with null where a row has no value. /v2 has no ids of candidates: their positions take
their place. `catalogue` says whether a catalogue gave features beside them. Scores have the digits of the answer. In
place of `user` and `candidates` there may be `"hashes": {"user", "candidate_id", "features"}`: XXH3-64 of the user, and
of each candidate's id and features, as JSON without spaces, keys sorted, what is null left out.

Shapes: N candidates, O outputs.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray

from model.features.encoder import Column
from service.base.record import RequestRecord

# What a request takes in memory, over its text: the text and arrays, or the objects of rows.
_COLUMNS_COST, _ROWS_COST = 2, 10

_encoder = msgspec.json.Encoder()
_canonical = msgspec.json.Encoder(order="sorted")


class Asked(Protocol):
    """Kept part of a request: a Question of /v1, `Tensors` of /v2."""

    @property
    def user(self) -> dict[str, Any]:
        """User and context features."""

    @property
    def ids(self) -> list[str]:
        """The candidates' ids."""

    @property
    def rows(self) -> list[dict[str, Any]] | None:
        """The candidates' features where they came as rows."""

    @property
    def top_k(self) -> int | None:
        """Number of candidates that are answered."""

    def written(self) -> Mapping[str, Any]:
        """The candidates' columns, for JSON, where they did not come as rows."""


class Tensors(NamedTuple):
    """A request of /v2: the columns of its two blocks, and N."""

    request: Mapping[str, Column]
    candidates: Mapping[str, Column]
    num_candidates: int
    rows: None = None
    top_k: None = None

    @property
    def user(self) -> dict[str, Any]:
        """User and context features."""
        return {name: _listed(column)[0] for name, column in self.request.items()}

    @property
    def ids(self) -> list[str]:
        """The candidates' positions."""
        return list(map(str, range(self.num_candidates)))

    def written(self) -> Mapping[str, Any]:
        """The candidates' columns."""
        return {name: _listed(column) for name, column in self.candidates.items()}


class Impression(NamedTuple):
    """A scored request. `held_bytes` is about what keeping it costs. Features of `integers` may have been sent as
    strings of digits."""

    time: datetime
    record: RequestRecord
    question: Asked
    tasks: Sequence[str]
    score_N: NDArray[np.float64]
    answers_NO: NDArray[np.float32]
    held_bytes: int
    integers: frozenset[str]

    @classmethod
    def of(
        cls,
        record: RequestRecord,
        question: Asked,
        tasks: Sequence[str],
        score_N: NDArray[np.float64],
        answers_NO: NDArray[np.float32],
        body_bytes: int,
        integers: frozenset[str],
    ) -> "Impression":
        """The impression of a request that has just been scored."""
        held = (
            body_bytes * (_COLUMNS_COST if question.rows is None else _ROWS_COST) + score_N.nbytes + answers_NO.nbytes
        )
        return cls(datetime.now(UTC), record, question, tasks, score_N, answers_NO, held, integers)

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
                **(_hashes(question, self.integers) if is_hashed else _values(question)),
                "score": _as_answered(self.score_N),
                "tasks": dict(zip(self.tasks, map(_as_answered, self.answers_NO.T), strict=True)),
            }
        )
        # Columns are passed on as the client wrote them. In JSON a line may break only between values.
        return line.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n"


def _as_answered(scores_N: NDArray[np.floating]) -> msgspec.Raw:
    """Numbers as answers have them (service/rank/answer.py)."""
    return msgspec.Raw(orjson.dumps(np.ascontiguousarray(scores_N), option=orjson.OPT_SERIALIZE_NUMPY))


def _listed(column: Column) -> list[Any]:
    """A column as JSON has it."""
    values: list[Any] = column.values.tolist() if isinstance(column.values, np.ndarray) else column.values
    if column.missing is not None:
        values = [None if is_null else value for value, is_null in zip(values, column.missing.tolist(), strict=True)]
    if column.lengths_B is None:
        return values
    ends_B = np.cumsum(column.lengths_B)
    starts_B = ends_B - column.lengths_B
    return [values[start:end] for start, end in zip(starts_B.tolist(), ends_B.tolist(), strict=True)]


def _values(question: Asked) -> dict[str, Any]:
    if question.rows is None:
        features = question.written()
    else:
        names = dict.fromkeys(chain.from_iterable(question.rows))
        features = {name: [row.get(name) for row in question.rows] for name in names}
    return {"user": question.user, "candidates": {"id": question.ids, "features": features}}


def _hashes(question: Asked, integers: frozenset[str]) -> dict[str, Any]:
    rows = question.rows
    if rows is None:
        written = question.written()
        columns = [_decoded(column) for column in written.values()]
        rows = [dict(zip(written, values, strict=True)) for values in zip(*columns, strict=True)]
    return {
        "hashes": {
            "user": _hash(_present(question.user, integers)),
            "candidate_id": list(map(_hash, question.ids)),
            # Where a catalogue knows the candidates, a request may give no features at all.
            "features": [_hash(_present(row, integers)) for row in rows] or [_hash({})] * len(question.ids),
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
