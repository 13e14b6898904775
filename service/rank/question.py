"""A scoring request on the wire: bytes -> `Question` -> columns.

In: the body of POST /v1/rank, columnar or rows. Out: plain lists and dicts of a checked shape, then the model's
columns. A columnar body without a fault is read by service.rank.question_fast. Whatever else comes is decoded as it
stands and looked at key by key, to take it or to name its faults. Values of features are checked once, whole columns at
a time, by the encoder. Rows are transposed once and go the same way. Raises Problem: 400 not JSON, 413 too many
candidates, 422 naming every fault.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from operator import itemgetter
from typing import Any

import msgspec

from model.features.encoder import Column, ColumnErrors, Encoded, FeatureEncoder
from model.strict_yaml import did_you_mean
from service.base.errors import FAULTS_SHOWN, Fault, Problem, kind_of, told
from service.base.errors import shown as _shown
from service.base.json_object import decoded, json_object
from service.base.record import MAX_REQUEST_ID, is_request_id

KEYS = ("request_id", "model", "version", "value_model", "user", "candidates", "top_k", "explain", "strict")


class _Columns(msgspec.Struct):
    features: dict[str, msgspec.Raw]


class _Columnar(msgspec.Struct):
    candidates: _Columns


class _Rows(msgspec.Struct):
    candidates: list[msgspec.Raw]
    request_id: Any = None


_columnar_decoder = msgspec.json.Decoder(_Columnar)
_rows_decoder = msgspec.json.Decoder(_Rows)
# A body with more bytes for each candidate that is allowed has its rows counted before they are decoded.
_BYTES_A_ROW = 512


@dataclass(frozen=True, slots=True)
class Question:
    """A request of a checked shape, in request order: candidates' features as columns or as `rows` of features. Columns
    of numbers may be arrays already, whose `body` is kept for who wants them as the client wrote them. `featureless` is
    the first place without any, for which only a catalogue can make up."""

    request_id: str | None
    model: str | None
    version: str | None
    value_model: str | None
    user: dict[str, Any]
    ids: list[str]
    features: Mapping[str, list[Any] | Column]
    rows: list[dict[str, Any]] | None
    top_k: int | None
    explain: bool = False
    strict: bool = False
    featureless: str | None = None
    body: bytes | None = None

    def request_columns(self, encoder: FeatureEncoder) -> Mapping[str, Column]:
        """The columns of user and context."""
        return encoder.request_columns(self.user)

    def written(self) -> Mapping[str, Any]:
        """The candidates' columns as something that msgspec writes as the client did."""
        if not any(isinstance(column, Column) for column in self.features.values()):
            return self.features
        assert self.body is not None
        return _columnar_decoder.decode(self.body).candidates.features


def check_count(question: Question, max_candidates: int) -> None:
    """Raises Problem 413 for a question with more candidates."""
    if question.rows is None:
        _check_count(len(question.ids), "candidates.id", max_candidates, [])


def decode(body: bytes, max_candidates: int) -> dict[str, Any]:
    """The JSON object of a body. Of one with too many rows, as much as `parse` refuses it for. Raises Problem 400 (not
    JSON) or 422 (not an object)."""
    if len(body) > _BYTES_A_ROW * max_candidates:
        with suppress(ValueError, RecursionError):
            given = _rows_decoder.decode(body)
            if len(given.candidates) > max_candidates:
                return {"request_id": given.request_id, "candidates": given.candidates}
    return json_object(body)


def _listed(given: Any) -> list[Any]:
    values: list[Any] = decoded(given) if isinstance(given, msgspec.Raw) else given
    return values


def request_id_of(document: Mapping[str, Any]) -> str | None:
    """The request's own id, None if it gives none. Raises Problem 422 if it cannot stand in a header."""
    given = document.get("request_id")
    if given is None:
        return None
    if not is_request_id(given):
        rule = (
            f"expected a string of 1 to {MAX_REQUEST_ID} printable ASCII characters, not all blank, got {told(given)}"
        )
        raise Problem.wrong_content([Fault("request_id", rule)])
    return str(given)


def parse(document: Mapping[str, Any], max_candidates: int) -> Question:
    """The question that a JSON object asks. Raises Problem 422 with every fault of its shape, 413 over the limit."""
    faults = [Fault(_shown(key), _unknown(key, KEYS)) for key in list(document.keys() - set(KEYS))[:FAULTS_SHOWN]]
    version: Any = document.get("version")
    if type(version) is int:
        version = str(version)
    for key, given in {**document, "version": version}.items():
        if key in ("model", "version", "value_model") and given is not None and not isinstance(given, str):
            faults.append(Fault(key, f"expected a string, got {told(given)}"))
    top_k = document.get("top_k")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        faults.append(Fault("top_k", f"expected an integer of at least 1, got {told(top_k)}"))
    for key in ("explain", "strict"):
        given = document.get(key)
        if given is not None and not isinstance(given, bool):
            faults.append(Fault(key, f"expected true or false, got {told(given)}"))
    user = document.get("user")
    if not isinstance(user, dict):
        got = "nothing" if "user" not in document else kind_of(user)
        faults.append(Fault("user", f"expected an object of user and context features, got {got}"))
        user = {}
    candidates = document.get("candidates")
    ids: list[str] = []
    features: dict[str, list[Any]] = {}
    rows: list[dict[str, Any]] | None = None
    featureless = None
    if isinstance(candidates, dict):
        ids, features = _columnar(candidates, max_candidates, faults)
        featureless = None if "features" in candidates else "candidates.features"
    elif isinstance(candidates, list):
        ids, rows, featureless = _rows(candidates, max_candidates, faults)
    else:
        got = "nothing" if "candidates" not in document else kind_of(candidates)
        faults.append(Fault("candidates", f"expected an object of columns or a list of rows, got {got}"))
    if faults:
        raise Problem.wrong_content(faults)
    return Question(
        request_id=document.get("request_id"),
        model=document.get("model"),
        version=version,
        value_model=document.get("value_model"),
        user=user,
        ids=ids,
        features=features,
        rows=rows,
        top_k=top_k,
        explain=bool(document.get("explain")),
        strict=bool(document.get("strict")),
        featureless=featureless,
    )


def read_features(question: Question, encoder: FeatureEncoder) -> tuple[Encoded, dict[str, Column]]:
    """User and context, encoded, and the candidates' columns. Raises Problem 422 with every faulty value of both."""
    faults: list[Fault] = []
    candidates: dict[str, Column] = {}
    try:
        request = encoder.encode_request(question.user)
    except ColumnErrors as errors:
        faults += [Fault(f"user.{_shown(e.feature)}", fault.message) for e in errors.errors for fault in e.faults]
    features: Mapping[str, list[Any]]
    if question.rows is not None:
        features = _transposed(question.rows, {feature.name for feature in encoder.schema.asked("candidate")})
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


def _columnar(
    candidates: dict[str, Any], max_candidates: int, faults: list[Fault]
) -> tuple[list[str], dict[str, list[Any]]]:
    faults += _unknown_keys("candidates", candidates)
    ids, features = candidates.get("id"), candidates.get("features", {})
    if isinstance(ids, list):
        _check_ids(ids, "candidates.id[{}]", "candidates.id", max_candidates, faults)
    else:
        got = "nothing" if "id" not in candidates else kind_of(ids)
        faults.append(Fault("candidates.id", f"expected a list of strings, got {got}"))
    if not isinstance(features, dict):
        faults.append(Fault("candidates.features", f"expected an object of columns, got {kind_of(features)}"))
        features = {}
    wrong = [name for name, column in features.items() if not isinstance(column, list)]
    faults += [
        Fault(f"candidates.features.{_shown(name)}", f"expected a list of values, got {kind_of(features[name])}")
        for name in wrong[:FAULTS_SHOWN]
    ]
    return ids if isinstance(ids, list) else [], features


def _rows(
    rows: list[Any], max_candidates: int, faults: list[Fault]
) -> tuple[list[str], list[dict[str, Any]], str | None]:
    _check_count(len(rows), "candidates", max_candidates, faults)
    before = len(faults)
    for position, row in enumerate(rows):
        if len(faults) - before >= FAULTS_SHOWN:
            break
        if not isinstance(row, dict):
            faults.append(Fault(f"candidates[{position}]", f"expected an object, got {kind_of(row)}"))
        elif row.keys() != {"id", "features"} or not isinstance(row["features"], dict):
            faults += _row_faults(row, f"candidates[{position}]")
    if len(faults) > before:
        return [], [], None
    ids = list(map(itemgetter("id"), rows))
    _check_ids(ids, "candidates[{}].id", "candidates", max_candidates, faults)
    try:
        return ids, list(map(itemgetter("features"), rows)), None
    except KeyError:
        first = next(position for position, row in enumerate(rows) if "features" not in row)
        return ids, [row.get("features", {}) for row in rows], f"candidates[{first}].features"


def _row_faults(row: dict[str, Any], place: str) -> list[Fault]:
    faults = _unknown_keys(place, row)
    if "id" not in row:
        faults.append(Fault(f"{place}.id", "expected a string, got nothing"))
    if not isinstance(features := row.get("features", {}), dict):
        faults.append(Fault(f"{place}.features", f"expected an object of features, got {kind_of(features)}"))
    return faults


def _transposed(rows: Sequence[dict[str, Any]], asked: set[str]) -> dict[str, list[Any]]:
    """Columns of row objects. A feature that a row leaves out is missing there, as null is."""
    names = dict.fromkeys(chain.from_iterable(rows))
    if not names.keys() <= asked:
        # A few unknown names are enough to refuse a request. A body may hold as many as it has bytes for.
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


def _check_ids(ids: list[Any], place: str, whole: str, max_candidates: int, faults: list[Fault]) -> None:
    _check_count(len(ids), whole, max_candidates, faults)
    if not set(map(type, ids)) <= {str}:
        wrong = [position for position, given in enumerate(ids) if not isinstance(given, str)]
        faults += [
            Fault(place.format(position), f"expected a string, got {kind_of(ids[position])}")
            for position in wrong[:FAULTS_SHOWN]
        ]


def _check_count(count: int, place: str, max_candidates: int, faults: list[Fault]) -> None:
    if count > max_candidates:
        message = f"{count} candidates, {max_candidates} at most; send them in several requests"
        raise Problem(413, message, faults=[Fault(place, message)], reason="too_many_candidates")
    if not count and not any(fault.path == place for fault in faults):
        faults.append(Fault(place, "no candidates: at least one is needed"))


def _unknown_keys(place: str, given: Mapping[str, Any]) -> list[Fault]:
    unknown = list(given.keys() - {"id", "features"})[:FAULTS_SHOWN]
    return [Fault(f"{place}.{_shown(key)}", _unknown(key, ("id", "features"))) for key in unknown]


def _unknown(key: str, valid: Sequence[str]) -> str:
    return "unknown key; " + did_you_mean(key, valid, f"valid keys: {', '.join(valid)}")
