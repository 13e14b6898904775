"""One scored request as a line of the impression log, which service/impressions/record.py reads.

In: a scored request. Out: a line of JSON, candidates in request order:
`{"format": 2, "time", "request_id", "model", "model_version", "calibration", "value_model", "value_model_version",
"policy", "policy_version", "experiments", "epochs", "fell_back", "user_hash", "share", "top_k", "catalogue", "user",
"candidates": {"id", "features"}, "histories", "score", "tasks", "raw", "order", "propensity"}`.

`user` and `candidates` are those of POST /v1/rank, always as columns, with null where a row has no value. /v2 has no
ids of candidates: their positions take their place. `user_hash` is a keyed hash of the user (model/user.py), null where
the model or the request has none. `share` is the share of all requests that the log keeps. `catalogue` is the
generation that gave features beside them. `tasks` are answers, with their digits, and `raw` are those before
calibration. `calibration` is the generation that answers are calibrated by, null of the version's own. `order` are row
numbers in the order answered, at most `top_k`, and `propensity` the probability of each place given those before it,
null unless a policy explored. `experiments` and `epochs` are by experiment, `fell_back` those whose arm could not
answer. `histories` are those of the user that the state store had, by name, entries as [value, time in Unix seconds],
null where there is no state of users. In place of `user`, `candidates` and `histories` there may be
`"hashes": {"user", "candidate_id", "features"}`: XXH3-64 of the user's features, and of each candidate's id and
features, as JSON without spaces, keys sorted, what is null left out.

Where lines were lost, one says so: `{"format": 2, "time", "lost": number of requests, "reason"}`.

Shapes: N candidates, O outputs, K of the candidates answered.
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray

from model.user import user_hash
from service.base.clock import rfc3339
from service.rank.scored_request import Arms, ReceivedRequest, ScoredRequest

FORMAT = 2
# What a request takes in memory, over its text: the text and arrays, or the objects of rows.
_COLUMNS_COST, _ROWS_COST = 2, 10
# Bytes that an entry of a history takes in memory, with its value and its time.
_ENTRY_BYTES = 120
_NO_POLICY: dict[str, Any] = {"policy": None, "policy_version": None}

_encoder = msgspec.json.Encoder()
_canonical = msgspec.json.Encoder(order="sorted")


class LineSettings(NamedTuple):
    """Settings of a log's lines. `share` of all requests is kept. `user_hash_key` None is for models that know no
    user."""

    share: float
    is_hashed: bool
    user_hash_key: bytes | None


class Impression(NamedTuple):
    """A scored request as it is logged. `held_bytes` is about what keeping it costs. Features of `integers` may have
    been sent as strings of digits. It keeps no model version alive."""

    head: dict[str, str]
    calibration: str | None
    experiments: Arms
    user: str | None
    catalogue: str | None
    received: ReceivedRequest
    outputs: Sequence[str]
    score_N: NDArray[np.float64]
    answers_NO: NDArray[np.float32]
    raw_NO: NDArray[np.float32]
    order_K: NDArray[np.intp]
    propensity_K: NDArray[np.float64] | None
    held_bytes: int
    integers: frozenset[str]

    @classmethod
    def of(cls, request: ScoredRequest) -> "Impression":
        """The impression of a request that has just been scored."""
        encoded, answers, score_N, order_K = request.encoded, request.answers, request.score_N, request.order_K
        received, scorer = encoded.received, encoded.model.scorer
        held = encoded.body_bytes * (_COLUMNS_COST if received.rows is None else _ROWS_COST)
        if received.hydrated is not None:
            held += _ENTRY_BYTES * sum(map(len, received.hydrated.entries.values()))
        return cls(
            encoded.head,
            answers.calibration,
            encoded.experiments,
            encoded.user,
            encoded.catalogue_generation,
            received,
            scorer.outputs,
            score_N,
            answers.answers_NO,
            answers.raw_NO,
            order_K,
            None if request.placed is None else request.placed.propensity_K,
            held + score_N.nbytes + 2 * answers.answers_NO.nbytes + order_K.nbytes,
            scorer.encoder.integers,
        )

    def line(self, taken_at: datetime, settings: LineSettings) -> bytes:
        """The line, with its end."""
        received, key = self.received, settings.user_hash_key
        tasks = dict(zip(self.outputs, map(_as_answered, self.answers_NO.T), strict=True))
        raw = tasks
        if self.raw_NO is not self.answers_NO:
            raw = dict(zip(self.outputs, map(_as_answered, self.raw_NO.T), strict=True))
        line = _encoder.encode(
            {
                "format": FORMAT,
                "time": rfc3339(taken_at),
                **_NO_POLICY,
                **self.head,
                "calibration": self.calibration,
                "experiments": self.experiments.arms,
                "epochs": self.experiments.epochs,
                "fell_back": self.experiments.fell_back,
                "user_hash": None if self.user is None or key is None else user_hash(key, self.user),
                "share": settings.share,
                "top_k": received.top_k,
                "catalogue": self.catalogue,
                **(_hashes(received, self.integers) if settings.is_hashed else _values(received)),
                "score": _as_answered(self.score_N),
                "tasks": tasks,
                "raw": raw,
                "order": _as_answered(self.order_K),
                "propensity": None if self.propensity_K is None else _as_answered(self.propensity_K),
            }
        )
        # Columns are passed on as the client wrote them. In JSON a line may break only between values.
        return line.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n"


def loss_line(lost_at: datetime, lost: int, reason: str) -> bytes:
    """The line of so many requests that were lost, with its end."""
    return _encoder.encode({"format": FORMAT, "time": rfc3339(lost_at), "lost": lost, "reason": reason}) + b"\n"


def _as_answered(values_N: NDArray[Any]) -> msgspec.Raw:
    """Numbers as answers have them (service/rank/answer.py)."""
    return msgspec.Raw(orjson.dumps(np.ascontiguousarray(values_N), option=orjson.OPT_SERIALIZE_NUMPY))


def _values(received: ReceivedRequest) -> dict[str, Any]:
    if received.rows is None:
        features = received.written()
    else:
        names = dict.fromkeys(chain.from_iterable(received.rows))
        features = {name: [row.get(name) for row in received.rows] for name in names}
    return {
        "user": received.user,
        "candidates": {"id": received.ids, "features": features},
        "histories": _histories(received),
    }


def _histories(received: ReceivedRequest) -> dict[str, list[tuple[object, float]]] | None:
    if received.hydrated is None:
        return None
    histories = received.hydrated.entries.items()
    return {name: [(entry.value, entry.time) for entry in entries] for name, entries in histories}


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
