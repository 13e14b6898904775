"""Raw values -> rows of tables and numbers, against hashes, vocabularies and transforms computed by other means."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import scipy.stats
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from model.features.encoder import Encoded, FeatureEncoder, FittedFeatures, NumberStep, hash_integers
from model.features.kinds.columns import Column
from model.features.number_transforms import NUMBER_LIMIT
from model.schema import Block, FeedSchema
from tests.model.feeds import Rows, columns_of, encoder_of, everything, random_rows, schema_of

TASKS = "tasks: [{name: click, kind: binary, label: clicked}]"


def one_feature(feature: str, *others: str) -> FeedSchema:
    """A feed with the candidate feature `x`, described by `feature`, and `others`."""
    lines = "".join(f"  - {line}\n" for line in (f"{{name: x, side: candidate, {feature}}}", *others))
    return schema_of(f"name: feed\nfeatures:\n{lines}{TASKS}")


def encode_x(schema: FeedSchema, values: Sequence[object], fitted: FittedFeatures | None = None) -> Encoded:
    """The candidate block of values of `x` alone."""
    if fitted is None:
        fitted = FittedFeatures.fit(schema, columns_of(schema, {f.name: values for f in schema.features}), {})
    encoder = FeatureEncoder(schema, fitted)
    columns = encoder.columns("candidate", {"x": values}, len(values))
    return encoder.encode("candidate", columns, len(values), as_served=True)


def numbers(encoded: Encoded) -> list[float]:
    return [float(value) for value in encoded.block.numbers_BQ[:, 0]]


# --- hashing


def split_mix_64(value: int) -> int:
    """SplitMix64's first output from the state `value`, in Python's own integers."""
    word = (value + 0x9E3779B97F4A7C15) % 2**64
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) % 2**64
    return word ^ (word >> 31)


def test_split_mix_is_the_published_one() -> None:
    """The generator's first outputs from seed 1234567, as its author's test vectors list them."""
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + step * gamma) % 2**64 for step in range(3)], np.uint64).view(np.int64)
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert hash_integers(states).tolist() == published


@settings(max_examples=200)
@given(values=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20), buckets=st.integers(1, 2**31 - 2))
def test_integers_take_the_row_of_split_mix(values: list[int], buckets: int) -> None:
    encoded = encode_x(one_feature(f"kind: id, buckets: {buckets}, dim: 4"), values, FittedFeatures())
    assert encoded.block.ids_BK[:, 0].tolist() == [split_mix_64(value) % buckets + 1 for value in values]


@settings(max_examples=200)
@given(values=st.lists(st.text(), min_size=1, max_size=20), buckets=st.integers(1, 2**31 - 2))
def test_strings_take_the_row_of_xxh3_of_their_utf8_bytes(values: list[str], buckets: int) -> None:
    encoded = encode_x(one_feature(f"kind: id, dtype: string, buckets: {buckets}, dim: 4"), values, FittedFeatures())
    expected = [int.from_bytes(xxhash.xxh3_64_digest(value.encode()), "big") % buckets + 1 for value in values]
    assert encoded.block.ids_BK[:, 0].tolist() == expected


@pytest.mark.parametrize("values", [
    list(range(20_000)),
    list(range(0, 20_000 * 1024, 1024)),
    [-value for value in range(20_000)],
    [2**62 + value for value in range(20_000)],
    [f"item-{value}" for value in range(20_000)],
], ids=["consecutive", "multiples of 1024", "negative", "large", "strings"])  # fmt: skip
@pytest.mark.parametrize("buckets", [97, 1000, 1024])
def test_ids_spread_evenly_over_buckets(values: list[object], buckets: int) -> None:
    dtype = "string" if isinstance(values[0], str) else "int64"
    schema = one_feature(f"kind: id, dtype: {dtype}, buckets: {buckets}, dim: 4")
    rows = encode_x(schema, values, FittedFeatures()).block.ids_BK[:, 0]
    counts = np.bincount(rows, minlength=buckets + 1)
    assert counts[0] == 0, "row 0 is for unknown ids"
    # Even hashing fails this once in a million. Ids taken modulo buckets or bytes summed fail it by far.
    assert scipy.stats.chisquare(counts[1:]).pvalue > 1e-6


# --- vocabularies


def test_vocabulary_rows_follow_the_list_and_0_is_unknown() -> None:
    schema = one_feature("kind: id, vocabulary: [7, -3, 9223372036854775807, 0], dim: 4")
    encoded = encode_x(schema, [0, 2**63 - 1, -3, 7, 8, None, -(2**63), 3], FittedFeatures())
    assert encoded.block.ids_BK[:, 0].tolist() == [4, 3, 2, 1, 0, 0, 0, 0]
    assert encoded.missing == {"x": 1}
    assert encoded.oov == {"x": 3}


@pytest.mark.parametrize("base", [0, -40, 2**63 - 31, -(2**63), 2**40])
@given(entries=st.sets(st.integers(0, 30), min_size=1), width=st.sampled_from([1, 10_000]))
def test_vocabularies_of_close_integers_answer_as_a_dictionary(entries: set[int], base: int, width: int) -> None:
    ids = [base + entry * width for entry in entries if base + entry * width < 2**63] or [base]
    schema = one_feature(f"kind: id, vocabulary: {ids}, dim: 4")
    asked = [value for entry in ids for value in (entry - 1, entry, entry + 1) if -(2**63) <= value < 2**63]
    asked += [-(2**63), 2**63 - 1]
    row_of = {value: row for row, value in enumerate(ids, start=1)}
    assert encode_x(schema, asked).block.ids_BK[:, 0].tolist() == [row_of.get(value, 0) for value in asked]


def test_string_vocabulary_tells_forms_of_a_character_apart() -> None:
    schema = one_feature("kind: id, dtype: string, vocabulary: [b, a, '', é, 日本], dim: 4")
    encoded = encode_x(schema, ["a", "b", "", "é", "e\u0301", "日本", "A", None, "a "], FittedFeatures())
    assert encoded.block.ids_BK[:, 0].tolist() == [2, 1, 3, 4, 0, 5, 0, 0, 0]
    assert encoded.missing == {"x": 1}
    assert encoded.oov == {"x": 3}


@pytest.mark.parametrize(("min_count", "expected"), [(1, (-5, 3, 8)), (2, (3, 8)), (3, (3,))])
def test_fitted_vocabulary_keeps_what_is_seen_often_enough(min_count: int, expected: tuple[int, ...]) -> None:
    schema = one_feature(f"kind: id, vocabulary: fitted, min_count: {min_count}, dim: 4")
    columns = columns_of(schema, {"x": [8, 3, None, 3, None, None, -5, 3, 8]})
    assert FittedFeatures.fit(schema, columns, {}).vocabularies == {"x": expected}


def test_fitted_vocabulary_counts_every_feature_of_its_table() -> None:
    history = "{name: history, side: user, kind: id_list, table: x, max_length: 5}"
    schema = one_feature("kind: id, dtype: string, vocabulary: fitted, min_count: 2, dim: 4", history)
    columns = columns_of(schema, {"x": ["b", "ä", "c"], "history": [["b", "c", None], None, ["c", "z"]]})
    assert FittedFeatures.fit(schema, columns, {}).vocabularies == {"x": ("b", "c")}


def test_fitting_nothing_is_refused() -> None:
    schema = one_feature("kind: id, vocabulary: fitted, min_count: 2, dim: 4")
    for values in ([], [None, None], [1, 2, 3]):
        with pytest.raises(ValueError, match="table 'x': no value is seen 2 times in the training split"):
            FittedFeatures.fit(schema, columns_of(schema, {"x": values}), {})


def test_an_encoder_needs_what_the_schema_fits() -> None:
    with pytest.raises(ValueError, match="table 'x': its fitted vocabulary is absent"):
        FeatureEncoder(one_feature("kind: id, vocabulary: fitted, dim: 4"), FittedFeatures())
    with pytest.raises(ValueError, match="feature 'x': its fitted transforms are not the schema's"):
        FeatureEncoder(one_feature("kind: number, transform: standardise"), FittedFeatures())


def test_fitted_features_survive_their_file() -> None:
    schema = everything()
    fitted = encoder_of(schema, random_rows(np.random.default_rng(0), 200)).fitted
    assert FittedFeatures.model_validate_json(fitted.model_dump_json()) == fitted
    assert FittedFeatures.from_mapping(fitted.model_dump(mode="json"), "file") == fitted


def test_digits_in_a_string_vocabulary_stay_strings_in_the_file() -> None:
    schema = one_feature("kind: id, dtype: string, vocabulary: fitted, dim: 4")
    fitted = FittedFeatures.fit(schema, columns_of(schema, {"x": ["2", "10"]}), {})
    text = fitted.model_dump_json()
    for again in (FittedFeatures.model_validate_json(text), FittedFeatures.from_mapping(json.loads(text), "file")):
        assert encode_x(schema, ["10", "2", "1"], again).block.ids_BK[:, 0].tolist() == [1, 2, 0]


# --- tables and lists


def test_shared_tables_give_one_row_per_id() -> None:
    ids = [-(2**63), -5, 0, 1, 2**40, 2**63 - 1]
    schema = one_feature(
        "kind: id, buckets: 1000, dim: 4",
        "{name: list, side: candidate, kind: id_list, table: x, max_length: 9}",
        "{name: other, side: candidate, kind: id, table: x}",
    )
    encoder = FeatureEncoder(schema, FittedFeatures())
    values: Mapping[str, Sequence[object]] = {"x": ids, "other": ids, "list": [[value] for value in ids]}
    block = encoder.encode("candidate", encoder.columns("candidate", values, 6), 6, as_served=True).block
    assert np.array_equal(block.ids_BK[:, 0], block.ids_BK[:, 1])
    assert np.array_equal(block.ids_BK[:, 0], block.list_values_V)
    assert encoder.rows_of_table == {"x": 1001}


@settings(max_examples=200)
@given(
    lists=st.lists(st.none() | st.lists(st.none() | st.integers(-3, 12), max_size=8), max_size=6),
    most=st.integers(1, 9),
)
def test_lists_keep_their_latest_values(lists: list[list[int | None] | None], most: int) -> None:
    schema = one_feature(f"kind: id_list, vocabulary: {list(range(10))}, dim: 4, max_length: {most}")
    encoded = encode_x(schema, lists, FittedFeatures())
    kept = [(values or [])[-most:] for values in lists]
    expected = [value + 1 if value is not None and 0 <= value < 10 else 0 for values in kept for value in values]
    assert encoded.block.list_values_V.tolist() == expected
    assert encoded.block.list_lengths_LB.tolist() == [[len(values) for values in kept]]
    # Counts by feature, of those that have any.
    assert encoded.missing == dict(+Counter(x=sum(not values for values in lists)))
    assert encoded.oov == dict(+Counter(x=expected.count(0)))


def test_a_very_long_list_costs_no_more_than_its_end() -> None:
    schema = one_feature("kind: id_list, buckets: 10, dim: 4, max_length: 2")
    encoded = encode_x(schema, [list(range(300_000)), [1]], FittedFeatures())
    expected = [split_mix_64(value) % 10 + 1 for value in (299_998, 299_999, 1)]
    assert encoded.block.list_values_V.tolist() == expected


# --- numbers


def test_log1p_keeps_the_sign() -> None:
    encoded = encode_x(one_feature("kind: number, transform: log1p"), [0, 1, -1, 1e6, -2.5])
    assert numbers(encoded) == pytest.approx(
        [0, math.log(2), -math.log(2), math.log(1e6 + 1), -math.log(3.5)], rel=1e-6
    )


def test_transforms_apply_in_order() -> None:
    values = [1.0, 10.0, 100.0, 0.0, 3.0]
    logs = [math.log1p(value) for value in values]
    mean, scale = np.mean(logs), np.std(logs)
    encoded = encode_x(one_feature("kind: number, transform: [log1p, standardise]"), values)
    assert numbers(encoded) == pytest.approx([(value - mean) / scale for value in logs], rel=1e-6)


def test_standardise_is_the_z_score() -> None:
    values = [3.0, -1.0, 4.0, 1.5]
    encoded = encode_x(one_feature("kind: number, transform: standardise"), values)
    assert numbers(encoded) == pytest.approx(scipy.stats.zscore(values).tolist(), rel=1e-6)


@pytest.mark.parametrize("transform", ["standardise", "quantile", "[log1p, standardise]", "[quantile, standardise]"])
def test_a_constant_column_becomes_0(transform: str) -> None:
    encoded = encode_x(one_feature(f"kind: number, transform: {transform}"), [5.0, 5.0, 5.0])
    assert numbers(encoded) == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


def test_quantile_is_the_rank_of_distinct_values() -> None:
    """On 0..1000 the rank of a value is itself, mapped to [-1, 1]. One knot in a hundred blurs it by 0.01."""
    schema = one_feature("kind: number, transform: quantile")
    fitted = FittedFeatures.fit(
        schema, columns_of(schema, {"x": np.random.default_rng(0).permutation(1001).tolist()}), {}
    )
    points = [0, 250, 500, 501, 999, 1000]
    assert numbers(encode_x(schema, points, fitted)) == pytest.approx([point / 500 - 1 for point in points], abs=0.01)


def test_quantile_gives_ties_the_middle_of_their_ranks() -> None:
    """Half of the values are 0 and fill the ranks from 0 to 1/2: their middle is 1/4, on [-1, 1] it is -1/2."""
    values = [0.0] * 500 + list(range(1, 501))
    schema = one_feature("kind: number, transform: quantile")
    fitted = FittedFeatures.fit(schema, columns_of(schema, {"x": values}), {})
    assert numbers(encode_x(schema, [0.0], fitted)) == pytest.approx([-0.5], abs=0.01)


FINITE = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-3, 3)


@settings(max_examples=200)
@given(training=st.lists(FINITE, min_size=1, max_size=300), asked=st.lists(FINITE, min_size=2, max_size=30))
def test_quantile_is_monotone_and_bounded(training: list[float], asked: list[float]) -> None:
    schema = one_feature("kind: number, transform: quantile")
    fitted = FittedFeatures.fit(schema, columns_of(schema, {"x": training}), {})
    answers = numbers(encode_x(schema, sorted(asked), fitted))
    assert all(-1 <= answer <= 1 for answer in answers)
    assert all(before <= after for before, after in itertools.pairwise(answers))


TRANSFORMS = ["none", "log1p", "standardise", "quantile", "[standardise, log1p]", "[log1p, standardise]"]


@settings(max_examples=100)
@given(training=st.lists(FINITE, min_size=1, max_size=20), asked=st.lists(FINITE, min_size=1, max_size=20))
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_numbers_stay_finite_whatever_is_asked(transform: str, training: list[float], asked: list[float]) -> None:
    schema = one_feature(f"kind: number, transform: {transform}")
    fitted = FittedFeatures.fit(schema, columns_of(schema, {"x": training}), {})
    answers = np.array(numbers(encode_x(schema, asked, fitted)))
    assert np.isfinite(answers).all()
    assert np.abs(answers).max() <= NUMBER_LIMIT
    assert FittedFeatures.model_validate_json(fitted.model_dump_json()) == fitted


def test_a_missing_number_is_the_raw_value_that_the_schema_names() -> None:
    schema = one_feature("kind: number, transform: log1p, missing: 20")
    encoded = encode_x(schema, [None, 20, 0])
    assert numbers(encoded) == pytest.approx([math.log(21), math.log(21), 0.0], rel=1e-6)
    assert encoded.missing == {"x": 1}
    absent = FeatureEncoder(schema, FittedFeatures(numbers={"x": (NumberStep(transform="log1p"),)}))
    encoded = absent.encode("candidate", {}, 3, as_served=True)
    assert numbers(encoded) == pytest.approx([math.log(21)] * 3, rel=1e-6)
    assert encoded.missing == {"x": 3}


def test_missing_numbers_count_in_what_is_fitted_as_the_value_they_take() -> None:
    encoded = encode_x(one_feature("kind: number, transform: standardise, missing: 4"), [None, 0, None, 0])
    assert numbers(encoded) == pytest.approx([1, -1, 1, -1], rel=1e-6)


# --- blocks


def encode(encoder: FeatureEncoder, block: Block, rows: Rows, count: int, *, as_served: bool) -> Encoded:
    columns: dict[str, Column] = {
        name: column for name, column in columns_of(encoder.schema, rows).items()
        if name in {feature.name for feature in encoder.schema.block(block)}
    }  # fmt: skip
    return encoder.encode(block, columns, count, as_served=as_served)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 12), as_served=st.booleans())
@pytest.mark.parametrize("block", ["request", "candidate"])
def test_a_batch_is_its_rows_one_by_one(block: Block, seed: int, count: int, as_served: bool) -> None:
    generator = np.random.default_rng(seed)
    schema = everything()
    encoder = encoder_of(schema, random_rows(np.random.default_rng(0), 200))
    rows = random_rows(generator, count)
    whole = encode(encoder, block, rows, count, as_served=as_served)
    parts = [
        encode(encoder, block, {name: [values[row]] for name, values in rows.items()}, 1, as_served=as_served)
        for row in range(count)
    ]
    assert np.array_equal(whole.block.ids_BK, np.concatenate([part.block.ids_BK for part in parts]))
    assert np.array_equal(whole.block.numbers_BQ, np.concatenate([part.block.numbers_BQ for part in parts]))
    lengths_LB = np.concatenate([part.block.list_lengths_LB for part in parts], axis=1)
    assert np.array_equal(whole.block.list_lengths_LB, lengths_LB)
    # Values lie feature by feature, and within a feature row by row.
    starts = [np.cumsum([0, *part.block.list_lengths_LB.sum(axis=1)]) for part in parts]
    values = [
        part.block.list_values_V[start[feature] : start[feature + 1]]
        for feature in range(len(lengths_LB))
        for part, start in zip(parts, starts, strict=True)
    ]
    assert np.array_equal(whole.block.list_values_V, np.concatenate([*values, np.zeros(0, np.int64)]))
    for counts, single in ((whole.missing, [p.missing for p in parts]), (whole.oov, [p.oov for p in parts])):
        assert counts == dict(sum(map(Counter, single), Counter()))


def test_training_only_features_are_read_in_training_and_fixed_in_scores() -> None:
    schema = everything()
    rows = random_rows(np.random.default_rng(1), 30) | {"position": [0, 1, 2] * 10, "speed": [0.5, 7.0] * 15}
    encoder = encoder_of(schema, rows)
    trained = encode(encoder, "request", rows, 30, as_served=False)
    served = encode(encoder, "request", rows, 30, as_served=True)
    # user_id, tab and position are the single ids. Age and speed the numbers.
    assert trained.block.ids_BK[:, 2].tolist() == [1, 2, 3] * 10
    assert served.block.ids_BK[:, 2].tolist() == [1] * 30
    assert trained.block.numbers_BQ[:, 1].tolist() == [0.5, 7.0] * 15
    assert served.block.numbers_BQ[:, 1].tolist() == [2.5] * 30
    assert np.array_equal(trained.block.ids_BK[:, :2], served.block.ids_BK[:, :2])
    assert {"position", "speed"} <= set(encoder.encode("request", {}, 1, as_served=False).missing)
    absent = encoder.encode("request", {}, 1, as_served=True)
    assert {"position", "speed"}.isdisjoint(absent.missing), "fixed values are not missing"
    assert absent.block.ids_BK[0, 2] == 1
    assert absent.block.numbers_BQ[0, 1] == 2.5


def test_absent_columns_are_missing_in_every_row() -> None:
    schema = everything()
    encoder = encoder_of(schema, random_rows(np.random.default_rng(0), 100))
    encoded = encoder.encode("candidate", {}, 3, as_served=True)
    nulls = encode(encoder, "candidate", {f.name: [None] * 3 for f in schema.features}, 3, as_served=True)
    assert np.array_equal(encoded.block.ids_BK, nulls.block.ids_BK)
    assert np.array_equal(encoded.block.numbers_BQ, nulls.block.numbers_BQ)
    assert np.array_equal(encoded.block.list_lengths_LB, nulls.block.list_lengths_LB)
    assert encoded.block.list_values_V.size == nulls.block.list_values_V.size == 0
    names = ["video_id", "author", "tags", "last_tag", "duration", "price"]
    assert encoded.missing == nulls.missing == dict.fromkeys(names, 3)
    assert encoded.oov == nulls.oov == {}


def test_shapes_and_types_are_those_of_a_ranker() -> None:
    schema = everything()
    encoder = encoder_of(schema, random_rows(np.random.default_rng(0), 100))
    block = encoder.encode("candidate", {}, 5, as_served=True).block
    assert block.ids_BK.shape == (5, 3)
    assert block.list_lengths_LB.shape == (1, 5)
    assert block.numbers_BQ.shape == (5, 2)
    assert [array.dtype for array in block] == [np.int64, np.int64, np.int64, np.float32]
    only_numbers = encode_x(one_feature("kind: number"), [1.0, 2.0]).block
    assert [array.shape for array in only_numbers] == [(2, 0), (0,), (0, 2), (2, 1)]


def test_targets_are_standardised_on_the_training_split() -> None:
    schema = everything()
    columns = columns_of(schema, random_rows(np.random.default_rng(0), 50))
    fitted = FittedFeatures.fit(schema, columns, {"play_time": np.array([1.0, 3.0]), "depth": np.array([7.0, 7.0])})
    assert (fitted.targets["play_time"].mean, fitted.targets["play_time"].scale) == (2.0, 1.0)
    assert (fitted.targets["depth"].mean, fitted.targets["depth"].scale) == (7.0, 1.0)
    with pytest.raises(ValueError, match="no labelled row"):
        FittedFeatures.fit(schema, columns, {"play_time": np.array([]), "depth": np.array([7.0])})
