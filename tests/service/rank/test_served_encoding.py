"""Features as served equal features as trained on: the same values as JSON text, as Python lists and as Arrow."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.features.encode_together import ReadBlocks, encode_together
from model.features.encoder import Encoded, FeatureEncoder, FittedFeatures
from model.features.kinds.columns import Column
from service.base.record import RequestRecord
from service.rank.question import read_features
from service.rank.read import read_question
from tests.model.feeds import schema_of
from training.data.kinds.columns import column_from_arrow

SCHEMA = schema_of("""
name: served
features:
  - {name: user_id, side: user, kind: id, buckets: 1000003, dim: 4}
  - {name: city, side: user, kind: id, dtype: string, vocabulary: [a, "", 日本], dim: 4}
  - {name: seen, side: user, kind: id_list, table: user_id, max_length: 3}
  - {name: age, side: user, kind: number, transform: log1p, missing: 7}
  - {name: tab, side: context, kind: id, vocabulary: [-9223372036854775808, 0, 9223372036854775807], dim: 4}
  - {name: item, side: candidate, kind: id, buckets: 97, dim: 4}
  - {name: shop, side: candidate, kind: id, buckets: 1024, dim: 4}
  - {name: kind, side: candidate, kind: id, vocabulary: [-1, 5], dim: 4}
  - {name: tag, side: candidate, kind: id, dtype: string, buckets: 50, dim: 4}
  - {name: topics, side: candidate, kind: id_list, table: item, max_length: 4}
  - {name: kinds, side: candidate, kind: id_list, table: kind, max_length: 2}
  - {name: tags, side: candidate, kind: id_list, table: tag, max_length: 3}
  - {name: price, side: candidate, kind: number, missing: -1}
  - {name: length, side: candidate, kind: number, transform: log1p}
tasks: [{name: click, kind: binary, label: y}]
""")
FITTED = FittedFeatures.from_mapping(
    {"numbers": {"age": [{"transform": "log1p"}], "price": [], "length": [{"transform": "log1p"}]}}, "test"
)
ENCODER = FeatureEncoder(SCHEMA, FITTED)
EDGES = [-(2**63), -(2**63) + 1, -(10**18), -1, 0, 5, 10**18, 2**53 + 1, 2**63 - 2, 2**63 - 1]
WORDS = ["", "a", "A", " ", "\0", "é", "e\u0301", "日本", "🎬", 'quote"', "back\\slash", "[1,2]", "null", "x" * 5000]

INTEGERS = st.sampled_from(EDGES) | st.integers(-(2**63), 2**63 - 1)
STRINGS = st.sampled_from(WORDS) | st.text(max_size=4)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**40), 2**40).map(float)
OF_KIND: list[tuple[st.SearchStrategy[Any], str]] = [
    (INTEGERS, "user_id tab item shop kind"),
    (STRINGS, "city tag"),
    (NUMBERS, "age price length"),
]
SCALARS = {name: values for values, names in OF_KIND for name in names.split()}
LISTS: dict[str, st.SearchStrategy[Any]] = {
    name: st.lists(values | st.none(), max_size=6) | st.lists(values, max_size=6)
    for values, names in ((INTEGERS, "seen topics kinds"), (STRINGS, "tags"))
    for name in names.split()
}
STRATEGIES = {**SCALARS, **LISTS}
ARROW = {
    "int64": pa.int64(),
    "string": pa.string(),
    "number": pa.float64(),
}


def arrow_type(name: str) -> pa.DataType:
    feature = next(one for one in SCHEMA.features if one.name == name)
    one = ARROW[ENCODER.dtype(name) or "number"]
    return pa.list_(one) if feature.kind == "id_list" else one


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """A scoring request, some features left out, some values null, columns with nulls and columns without any."""
    rows = draw(st.integers(1, 5))
    user = {
        feature.name: draw(STRATEGIES[feature.name] | st.none())
        for feature in SCHEMA.requested("request")
        if draw(st.integers(0, 4))
    }
    columns = {}
    for feature in SCHEMA.requested("candidate"):
        if draw(st.integers(0, 4)):
            values = STRATEGIES[feature.name] if draw(st.booleans()) else STRATEGIES[feature.name] | st.none()
            columns[feature.name] = draw(st.lists(values, min_size=rows, max_size=rows))
    return {"user": user, "candidates": {"id": [f"c{n}" for n in range(rows)], "features": columns}}


def as_read(body: bytes) -> ReadBlocks:
    """A body's features as the service reads them."""
    question = read_question(body, 10_000, RequestRecord("r", "/v1/rank"))
    return ReadBlocks(*read_features(question, ENCODER), len(question.ids))


def as_served(body: bytes) -> tuple[Encoded, Encoded]:
    """Both blocks as the service makes them of a body."""
    return ENCODER.encode_both(*as_read(body))


def as_trained(request: dict[str, Any]) -> tuple[Encoded, Encoded]:
    """Both blocks as training makes them of the same values in Arrow columns."""

    def columns(values: dict[str, list[Any]]) -> dict[str, Column]:
        by_name = {feature.name: feature for feature in SCHEMA.features}
        return {
            name: column_from_arrow(
                by_name[name],
                ENCODER.dtype(name),
                pa.chunked_array([pa.array(column, arrow_type(name))]),
            )
            for name, column in values.items()
        }

    user = columns({name: [value] for name, value in request["user"].items()})
    return encoded(user, columns(request["candidates"]["features"]), len(request["candidates"]["id"]))


def as_rows(request: dict[str, Any]) -> dict[str, Any]:
    candidates = request["candidates"]
    rows = [
        {"id": identifier, "features": {name: column[n] for name, column in candidates["features"].items()}}
        for n, identifier in enumerate(candidates["id"])
    ]
    return {**request, "candidates": rows}


def as_digits(request: dict[str, Any]) -> dict[str, Any]:
    """The same, int64 ids as strings of their digits."""

    def written(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [written(name, one) for one in value]
        return str(value) if isinstance(value, int) and name in ENCODER.integers else value

    user = {name: written(name, value) for name, value in request["user"].items()}
    candidates = request["candidates"]
    features = {name: written(name, column) for name, column in candidates["features"].items()}
    return {**request, "user": user, "candidates": {**candidates, "features": features}}


def encoded(request: Mapping[str, Column], candidates: Mapping[str, Column], rows: int) -> tuple[Encoded, Encoded]:
    return (
        ENCODER.encode("request", request, 1, as_served=True),
        ENCODER.encode("candidate", candidates, rows, as_served=True),
    )


def check_equal(request: dict[str, Any]) -> None:
    expected = as_trained(request)
    bodies = [
        json.dumps(request).encode(),
        json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode(),
        json.dumps(request, indent=1).encode(),
        json.dumps(as_rows(request)).encode(),
        json.dumps(as_digits(request)).encode(),
        json.dumps(as_rows(as_digits(request))).encode(),
    ]
    for body in bodies:
        check_blocks(as_served(body), expected)


def check_blocks(both: tuple[Encoded, Encoded], expected: tuple[Encoded, Encoded]) -> None:
    for served, trained in zip(both, expected, strict=True):
        arrays: list[tuple[np.ndarray, np.ndarray]] = list(zip(served.block, trained.block, strict=True))
        for got, wanted in arrays:
            assert got.dtype == wanted.dtype
            np.testing.assert_array_equal(got, wanted)
        assert (served.missing, served.oov) == (trained.missing, trained.oov)


@given(request=requests())
def test_what_is_served_is_what_was_trained_on(request: dict[str, Any]) -> None:
    check_equal(request)


@given(batch=st.lists(requests(), min_size=1, max_size=5))
def test_requests_encoded_together_are_those_of_each_alone(batch: list[dict[str, Any]]) -> None:
    together = encode_together(ENCODER, [as_read(json.dumps(request).encode()) for request in batch])
    for request, both in zip(batch, together, strict=True):
        check_blocks(both, as_trained(request))


def whole_request(rows: int, longest: int) -> dict[str, Any]:
    """Every feature given, values going round their edges. Lists of 0 to `longest` values."""
    user = {"user_id": -(2**63), "city": "日本", "seen": EDGES, "age": 0.1, "tab": 2**63 - 1}
    columns: dict[str, list[Any]] = {
        name: [EDGES[n * step % len(EDGES)] for n in range(rows)]
        for name, step in (("item", 1), ("shop", 3), ("kind", 7))
    }
    columns["tag"] = [WORDS[n % len(WORDS)] for n in range(rows)]
    columns["topics"] = [[EDGES[(n + k) % len(EDGES)] for k in range(n % (longest + 1))] for n in range(rows)]
    columns["kinds"] = [[n, -1, 5][: n % 4] for n in range(rows)]
    columns["tags"] = [WORDS[: n % 5] for n in range(rows)]
    columns["price"] = [n / 7 - 3 for n in range(rows)]
    columns["length"] = [10.0 ** (n % 300) for n in range(rows)]
    return {"user": user, "candidates": {"id": [f"c{n}" for n in range(rows)], "features": columns}}


@pytest.mark.parametrize(("rows", "longest"), [(1, 0), (1, 3), (2, 1), (50, 9), (7, 3000)])
def test_edges_and_very_long_lists_are_served_as_trained_on(rows: int, longest: int) -> None:
    check_equal(whole_request(rows, longest))


def test_hashing_all_at_once_is_hashing_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    request = whole_request(30, 9)
    together = as_trained(request)
    monkeypatch.setattr("model.features.encoder._TOGETHER", 0)
    for one_by_one, expected in zip(as_trained(request), together, strict=True):
        for got, wanted in zip(one_by_one.block, expected.block, strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("described", "shapes"),
    [
        ("kind: id, buckets: 5, dim: 4", [(2, 1), (0,), (0, 2), (2, 0)]),
        ("kind: number", [(2, 0), (0,), (0, 2), (2, 1)]),
        ("kind: id_list, buckets: 5, dim: 4, max_length: 2", [(2, 0), (3,), (1, 2), (2, 0)]),
    ],
)
def test_a_feed_with_features_of_one_kind_is_encoded(described: str, shapes: list[tuple[int, ...]]) -> None:
    feature = f"{{name: x, side: candidate, {described}}}"
    schema = schema_of(f"name: f\nfeatures: [{feature}]\ntasks: [{{name: t, kind: binary, label: y}}]")
    encoder = FeatureEncoder(schema, FittedFeatures.from_mapping({"numbers": {"x": []}}, "test"))
    values: list[object] = [[1], [2, 3]] if "id_list" in described else [1, 2]
    block = encoder.encode("candidate", encoder.columns("candidate", {"x": values}, 2), 2, as_served=True).block
    assert [array.shape for array in block] == shapes
