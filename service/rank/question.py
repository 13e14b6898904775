"""A scoring request as it came, and its encoded features.

In: a request of the wire (service/rank/wire.py). Out: `Question`, then the encoded user and the candidates' columns.
Values of features are checked once, whole columns at a time, by the encoder. Rows are transposed once and go the same
way. Raises Problem 422 naming every faulty value.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, islice
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from model.features.encoder import Column, ColumnErrors, Encoded, FeatureEncoder, ReadRow
from service.base.errors import FAULTS_SHOWN, Fault, Problem
from service.base.errors import shown as _shown
from service.base.json_object import decoded
from service.rank.hydrated_user import read_user
from service.rank.wire import CandidateColumns, Options, RankRequest
from service.state.user_state import Hydrated


class _Columns(msgspec.Struct):
    features: dict[str, msgspec.Raw]


class _Columnar(msgspec.Struct):
    candidates: _Columns


_columnar_decoder = msgspec.json.Decoder(_Columnar)


class Question(NamedTuple):
    """A scoring request, in request order: candidates' features as columns or as `rows` of features. Columns of numbers
    may be arrays already. `body` then gives them as the client wrote them. `featureless` is the first place without
    any, for which only a catalogue can make up. `user` has what `hydrated` says that the store gave."""

    options: Options
    user: dict[str, Any]
    ids: list[str]
    features: Mapping[str, list[Any] | Column]
    rows: list[dict[str, Any]] | None = None
    featureless: str | None = None
    body: Callable[[], bytes] | None = None
    hydrated: Hydrated | None = None

    @classmethod
    def of(cls, request: RankRequest) -> "Question":
        """The question of a decoded request."""
        candidates = request.candidates
        if isinstance(candidates, CandidateColumns):
            if candidates.features is UNSET:
                return cls(request, request.user, candidates.id, {}, featureless="candidates.features")
            return cls(request, request.user, candidates.id, candidates.features)
        bare = next((n for n, row in enumerate(candidates) if row.features is UNSET), None)
        featureless = None if bare is None else f"candidates[{bare}].features"
        rows = [{} if row.features is UNSET else row.features for row in candidates]
        return cls(request, request.user, [row.id for row in candidates], {}, rows, featureless)

    @property
    def top_k(self) -> int | None:
        """Number of candidates that are answered."""
        return self.options.top_k

    def request_columns(self, encoder: FeatureEncoder) -> Mapping[str, Column]:
        """The columns of user and context."""
        return encoder.request_columns(self.user)

    def written(self) -> Mapping[str, Any]:
        """The candidates' columns as something that msgspec writes as the client did."""
        if not any(isinstance(column, Column) for column in self.features.values()):
            return self.features
        assert self.body is not None
        return _columnar_decoder.decode(self.body()).candidates.features


def _listed(given: Any) -> list[Any]:
    values: list[Any] = decoded(given) if isinstance(given, msgspec.Raw) else given
    return values


def read_features(question: Question, encoder: FeatureEncoder) -> tuple[ReadRow | Encoded, dict[str, Column]]:
    """User and context, read, and the candidates' columns. Raises Problem 422 with every faulty value of both."""
    faults: list[Fault] = []
    candidates: dict[str, Column] = {}
    try:
        request = read_user(question.user, question.hydrated, encoder)
    except ColumnErrors as errors:
        faults += [Fault(f"user.{_shown(e.feature)}", fault.message) for e in errors.errors for fault in e.faults]
    features: Mapping[str, list[Any]]
    if question.rows is not None:
        features = _transposed(question.rows, {feature.name for feature in encoder.schema.requested("candidate")})
    else:
        candidates = encoder.plain_columns(question.features, len(question.ids))
        features = {}
        if len(candidates) < len(question.features):
            written = question.written()
            features = {name: _listed(written[name]) for name in question.features if name not in candidates}
    try:
        if features:
            candidates |= encoder.columns("candidate", features, len(question.ids))
    except ColumnErrors as errors:
        faults += [
            Fault(_candidate_path(question, e.feature, fault.row), fault.message)
            for e in errors.errors
            for fault in e.faults
        ]
    if faults:
        raise Problem.wrong_content(faults)
    return request, candidates


def _transposed(rows: Sequence[dict[str, Any]], asked: set[str]) -> dict[str, list[Any]]:
    """Columns of row objects. A feature that a row leaves out is missing there, as null is."""
    names = dict.fromkeys(chain.from_iterable(rows))
    if not names.keys() <= asked:
        # A few unknown names are enough to refuse a request. A body may have as many as it has bytes for.
        unknown = islice((name for name in names if name not in asked), FAULTS_SHOWN)
        names = dict.fromkeys([*unknown, *(name for name in names if name in asked)])
    try:
        return {name: list(map(itemgetter(name), rows)) for name in names}
    except KeyError:
        return {name: [row.get(name) for row in rows] for name in names}


def _candidate_path(question: Question, feature: str, row: int | None) -> str:
    name = _shown(feature)
    if question.rows is None:
        return f"candidates.features.{name}" + ("" if row is None else f"[{row}]")
    if row is None:
        row = next(position for position, features in enumerate(question.rows) if feature in features)
    return f"candidates[{row}].features.{name}"
