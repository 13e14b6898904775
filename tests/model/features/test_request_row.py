"""A request's own row, encoded in one pass: what the same values give as columns, fault by fault."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.features.encoder import Column, ColumnErrors, FeatureEncoder, FittedFeatures
from model.features.kinds import NumberFeature
from model.schema import FeedSchema
from tests.artifacts import TINY_SCHEMA
from tests.model.feeds import encoder_of, everything, random_rows

ENCODER = encoder_of(everything(), random_rows(np.random.default_rng(0), 200))
NAMES = [feature.name for feature in ENCODER.schema.requested("request")]
SCALARS = (
    st.none()
    | st.integers(-30, 30)
    | st.integers(-(2**66), 2**66)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.text(max_size=2)
)
VALUES = SCALARS | st.lists(st.integers(-5, 5) | SCALARS, max_size=9)


def check(encoder: FeatureEncoder, values: dict[str, object]) -> bool:
    """True where the values fit. Either way the faults are those of columns."""
    fault = None
    columns: dict[str, Column] = {}
    try:
        columns = encoder.columns("request", {name: [value] for name, value in values.items()}, 1)
    except ColumnErrors as expected:
        fault = str(expected)
    if fault is not None:
        with pytest.raises(ColumnErrors) as raised:
            encoder.encode_request(values)
        assert str(raised.value) == fault
        return False
    expected_row = encoder.encode("request", columns, 1, as_served=True)
    encoded = encoder.encode_request(values)
    for field, expected_array in expected_row.block._asdict().items():
        array = getattr(encoded.block, field)
        assert array.dtype == expected_array.dtype, field
        np.testing.assert_array_equal(array, expected_array, err_msg=field)
    assert (encoded.missing, encoded.oov) == (expected_row.missing, expected_row.oov)
    return True


@settings(max_examples=150)
@given(values=st.dictionaries(st.sampled_from([*NAMES, "colour", "video_id"]), VALUES))
def test_whatever_is_given(values: dict[str, object]) -> None:
    check(ENCODER, values)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), left_out=st.sets(st.sampled_from(NAMES)))
def test_right_values_with_some_left_out(seed: int, left_out: set[str]) -> None:
    row = random_rows(np.random.default_rng(seed), 1)
    values = {name: row[name][0] for name in NAMES if name not in left_out}
    assert check(ENCODER, values)
    assert ENCODER._one_row is not None
    assert ENCODER._one_row.read(values) is not None


@pytest.mark.parametrize("kinds", [{"id"}, {"number"}, {"id_list"}, {"id", "id_list"}])
def test_feeds_with_features_of_few_kinds(kinds: set[str]) -> None:
    features = [
        one
        for one in TINY_SCHEMA["features"]
        if one["side"] == "candidate" or (one["kind"] in kinds and one["name"] != "country")
    ]
    content = {**TINY_SCHEMA, "features": features, "tasks": TINY_SCHEMA["tasks"][:1]}
    schema = FeedSchema.from_mapping(content, "test")
    encoder = encoder_of_tiny(schema)
    names = [feature.name for feature in schema.requested("request")]
    given = {"user_id": 17, "history": [3, 9, 4, 5], "age_days": 12.5, "tab": 1}
    assert check(encoder, {name: given[name] for name in names})
    assert check(encoder, {})


def encoder_of_tiny(schema: FeedSchema) -> FeatureEncoder:
    numbers = {
        feature["name"]: [{"transform": one} for one in np.atleast_1d(feature.get("transform", [])).tolist()]
        for feature in TINY_SCHEMA["features"]
        if feature["kind"] == "number"
    }
    return FeatureEncoder(schema, fitted_with(numbers))


def fitted_with(numbers: dict[str, list[dict[str, str]]]) -> FittedFeatures:
    return FittedFeatures.from_mapping({"numbers": numbers}, "test")


def test_kinds_without_a_fast_path_go_the_general_way_to_the_same_row(monkeypatch: pytest.MonkeyPatch) -> None:
    schema, rows = everything(), random_rows(np.random.default_rng(1), 200)
    monkeypatch.setattr(NumberFeature, "has_fast_path", False)
    encoder = encoder_of(schema, rows)
    values = {name: rows[name][0] for name in NAMES}
    assert encoder._one_row is None
    assert check(encoder, values)
    candidates = {
        name: Column(np.array([1.0, 2.0])) if name == "price" else Column(np.array([1, 2]))
        for name in ("price", "video_id")
    }
    assert encoder.plain_columns(candidates, 2).keys() == {"video_id"}
    assert ENCODER.plain_columns(candidates, 2).keys() == {"price", "video_id"}
