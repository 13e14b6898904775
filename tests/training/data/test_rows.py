"""Parquet -> model inputs: splits, batches, and refusals that name file, column and row."""

from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from numpy.testing import assert_array_equal

from model.features.encoder import FeatureEncoder
from model.schema import FeedSchema
from tests.model.feeds import everything, fitted_of, random_rows
from tests.training_data import SCHEMA, Json, feed_table
from training.config import DataConfig, SplitName
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, fit_features, read_splits

# Splits


ONE_NUMBER = """
name: one
features: [{name: x, side: candidate, kind: number}]
tasks: [{name: click, kind: binary, label: y}]
"""


def splits_of(
    folder: Path, when: Sequence[Any] | pa.Array, split: Json, *wanted: SplitName
) -> dict[SplitName, list[float]]:
    """The x of each split's rows. X counts the rows, which lie in two files."""
    values = when if isinstance(when, pa.Array) else pa.array(when)
    table = pa.table({"x": np.arange(float(len(values))), "y": np.zeros(len(values), int), "when": values})
    half = -(-len(values) // 2)
    pq.write_table(table.slice(0, half), folder / "a.parquet")
    pq.write_table(table.slice(half), folder / "b.parquet")
    config = DataConfig.from_mapping({"path": folder, "split": {"column": "when", **split}}, "test")
    schema = FeedSchema.from_mapping(yaml.safe_load(ONE_NUMBER), "test")
    read = read_splits(config, schema, wanted or ("train", "validation"))
    return {name: part.column("x").to_pylist() for name, part in read.items()}


DAYS = [date(2022, 5, day) for day in (4, 5, 6, 7)]


@pytest.mark.parametrize(
    ("when", "split"),
    [
        ([20220504, 20220505, 20220506, 20220507], {"train": {"max": 20220505}, "validation": 20220506}),
        ([1, 2, 3, 9], {"train": [1, 2, 77], "validation": {"min": 3, "max": 5}}),
        ([0.25, 0.5, 0.75, 1.0], {"train": {"max": 0.5}, "validation": 0.75}),
        ([1, 2, 3, 4], {"train": {"max": 2.5}, "validation": {"min": 2.5, "max": 3.5}}),
        ([1, 1, 0, None], {"train": 1, "validation": {"max": 0}}),
        ([True, True, False, None], {"train": 1, "validation": 0}),
        (["2022-05-04", "2022-05-05", "2022-05-06", None], {"train": {"max": "2022-05-05"}, "validation": DAYS[2]}),
        (["train", "train", "valid", "test"], {"train": "train", "validation": ["valid"]}),
        (pa.array(["a", "a", "b", "c"]).dictionary_encode(), {"train": "a", "validation": ["b"]}),
        (pa.array(["a", "a", "b", "c"]).dictionary_encode(), {"train": {"max": "a"}, "validation": "b"}),
        (DAYS, {"train": {"max": "2022-05-05"}, "validation": "2022-05-06"}),
        (DAYS, {"train": {"max": DAYS[1]}, "validation": [DAYS[2]]}),
        (
            [datetime(2022, 5, day, 23, 59) for day in (4, 5, 6, 7)],
            {"train": {"max": "2022-05-05"}, "validation": {"min": "2022-05-06", "max": "2022-05-07T00:00:00"}},
        ),
    ],
)
def test_rows_are_split_by_the_values_of_a_column(tmp_path: Path, when: Sequence[Any] | pa.Array, split: Json) -> None:
    assert splits_of(tmp_path, when, split) == {"train": [0.0, 1.0], "validation": [2.0]}


def test_only_the_wanted_split_is_read(tmp_path: Path) -> None:
    split = {"train": 1, "validation": 2, "test": {"min": 3}}
    assert splits_of(tmp_path, [1, 2, 3, 4], split, "test") == {"test": [2.0, 3.0]}


def test_a_split_that_is_not_given_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.split\.test is not given"):
        splits_of(tmp_path, [1, 2], {"train": 1, "validation": 2}, "test")


@pytest.mark.parametrize("nothing", [3, [], [8, 9], {"min": 3}])
def test_a_split_without_rows_is_refused_with_its_column_and_values(tmp_path: Path, nothing: object) -> None:
    with pytest.raises(ValueError, match="no row is in split validation: column 'when' never matches"):
        splits_of(tmp_path, [1, 2], {"train": 1, "validation": nothing})


def test_a_row_in_two_splits_is_refused_by_file_and_row(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"b\.parquet: column 'when': 1 row in split train and in split valid") as no:
        splits_of(tmp_path, [1, 2, 3, 4, 5], {"train": {"max": 4}, "validation": {"min": 4}})
    assert "row 0" in str(no.value)


@pytest.mark.parametrize("wanted", [("train", "validation"), ("test",)])
def test_a_row_that_trains_and_tests_is_refused_whatever_split_is_read(
    tmp_path: Path, wanted: tuple[SplitName, ...]
) -> None:
    split = {"train": {"max": 2}, "validation": 3, "test": [2, 4]}
    with pytest.raises(ValueError, match=r"a\.parquet: .* in split train and in split test \(first: row 1\)"):
        splits_of(tmp_path, [1, 2, 3, 4], split, *wanted)


@pytest.mark.parametrize(
    ("when", "value"),
    [
        ([1, 2], "yesterday"),
        ([1, 2], 1.5),
        ([1, 2], [1, "a"]),
        ([1, 2], {"max": "z"}),
        ([1, 2], {"max": 2**70}),
        ([1, 2], 2**70),
        (["a", "b"], {"max": 3}),
        ([[1], [2]], 1),
        (DAYS[:2], {"max": "the fifth"}),
        (DAYS[:2], 20220504),
        (pa.nulls(2), 1),
    ],
)
def test_a_split_column_of_another_type_is_refused_by_name(
    tmp_path: Path, when: Sequence[Any] | pa.Array, value: object
) -> None:
    with pytest.raises(ValueError, match=r"a\.parquet: split column 'when' of type .* does not compare with"):
        splits_of(tmp_path, when, {"train": value, "validation": 2})


def test_files_whose_types_do_not_mix_are_refused(tmp_path: Path) -> None:
    for name, when in (("a", [1, 2]), ("b", ["1", "2"])):
        pq.write_table(
            pa.table({"x": [0.0, 1.0], "y": [0, 1], "when": when, "user": when}), tmp_path / f"{name}.parquet"
        )
    split = {"column": "when", "train": ["1"], "validation": ["2"]}
    config = DataConfig.from_mapping({"path": tmp_path, "group_by": "user", "split": split}, "test")
    with pytest.raises(ValueError, match="types that do not mix"):
        read_splits(config, FeedSchema.from_mapping(yaml.safe_load(ONE_NUMBER), "test"), ("train", "validation"))


# Files and labels


CLIPS = FeedSchema.from_mapping(yaml.safe_load(SCHEMA), "test")
CLIPS_SPLIT = {"column": "day", "train": {"max": 4}, "validation": 5, "test": 6}


def read_clips(folder: Path, **config: Any) -> pa.Table:
    return read_splits(
        DataConfig.from_mapping({"path": folder, "split": CLIPS_SPLIT, **config}, "test"), CLIPS, ("train",)
    )


def write_clips(folder: Path, **columns: Any) -> Path:
    """Good rows in good.parquet. later.parquet has the same with some columns replaced (None: left out)."""
    table = feed_table(60)
    pq.write_table(table, folder / "good.parquet")
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.remove_column(place) if values is None else table.set_column(place, name, values)
    pq.write_table(table, folder / "later.parquet")
    return folder / "later.parquet"


def with_value(name: str, row: int, value: object, kind: pa.DataType | None = None) -> pa.Array:
    values = feed_table(60).column(name).to_pylist()
    values[row] = value
    return pa.array(values, kind)


def test_good_files_are_read_whole(tmp_path: Path) -> None:
    write_clips(tmp_path)
    days = np.concatenate([feed_table(60).column("day").to_numpy()] * 2)
    assert read_clips(tmp_path)["train"].num_rows == int((days <= 4).sum())


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("is_click", with_value("is_click", 7, 2), r"column 'is_click' \(task click\): row 7: must be 0 or 1, got 2"),
        ("is_click", with_value("is_click", 0, None), "row 0: must be 0 or 1, got null"),
        ("is_click", with_value("is_click", 3, float("nan"), pa.float64()), "row 3: must be 0 or 1, got"),
        ("is_click", pa.array(["1"] * 60), r"column 'is_click' \(task click\): is string, not a number"),
        ("is_click", pa.nulls(60), "row 0: must be 0 or 1, got null"),
        ("watch_ms", with_value("watch_ms", 59, -0.5), r"column 'watch_ms' \(task watch\): row 59: must be a finite"),
        ("watch_ms", with_value("watch_ms", 4, float("inf")), "row 4: must be a finite number >= 0, got inf"),
        ("watch_ms", with_value("watch_ms", 4, None), "row 4: must be a finite number >= 0, got null or NaN"),
        ("like_known", with_value("like_known", 5, None), r"column 'like_known' \(task like\): row 5: must be 0 or 1"),
        ("like_known", pa.array([3] * 60), "row 0: must be 0 or 1, got 3; 60 such rows"),
        ("duration", with_value("duration", 9, float("nan")), "column 'duration': row 9: NaN"),
        ("user_id", with_value("user_id", 0, 1.5, pa.float64()), "column 'user_id': is double"),
        ("video", pa.array([2**63] * 60, pa.uint64()), "column 'video': row 0: an id beyond int64"),
        ("history", pa.array([1] * 60), "column 'history': is int64, an id_list needs a list column"),
        ("tab", pa.array([b"\xff"] * 60).cast(pa.string(), safe=False), "column 'tab': "),
        ("is_like", None, r"no column 'is_like' \(task like\), whose mask 'like_known' is 1 in \d+ rows"),
        ("like_known", None, "no column 'like_known', the mask of label 'is_like'; write both or neither"),
        ("is_click", None, "no column 'is_click'"),
        ("day", None, "no column 'day'"),
    ],
)
def test_a_fault_names_the_file_the_column_and_the_row(tmp_path: Path, name: str, values: Any, says: str) -> None:
    place = write_clips(tmp_path, **{name: values})
    with pytest.raises(ValueError, match=says) as refusal:
        read_clips(tmp_path)
    assert str(refusal.value).startswith(f"{place}: ")


def test_a_masked_row_may_hold_any_label(tmp_path: Path) -> None:
    labels, known = feed_table(60).column("is_like").to_pylist(), feed_table(60).column("like_known").to_pylist()
    hidden = known.index(False)
    labels[hidden] = 17
    write_clips(tmp_path, is_like=pa.array(labels))
    read_clips(tmp_path)
    labels[known.index(True)] = 17
    write_clips(tmp_path, is_like=pa.array(labels))
    with pytest.raises(ValueError, match=f"row {known.index(True)}: must be 0 or 1, got 17; 1 such row"):
        read_clips(tmp_path)


def test_a_user_column_that_is_absent_is_named(tmp_path: Path) -> None:
    write_clips(tmp_path)
    with pytest.raises(ValueError, match="no column 'person'"):
        read_clips(tmp_path, group_by="person")


@pytest.mark.parametrize("keep", [0, 3, 200, -8, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    place = write_clips(tmp_path)
    place.write_bytes(place.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"later\.parquet: not a readable Parquet file"):
        read_clips(tmp_path)


def test_damaged_pages_are_named(tmp_path: Path) -> None:
    place = write_clips(tmp_path)
    content = bytearray(place.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    place.write_bytes(content)
    with pytest.raises(ValueError, match=r"later\.parquet: "):
        read_clips(tmp_path)


@pytest.mark.parametrize("content", [b"user_id,video\n1,2\n", b"PAR1PAR1", b""])
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "table.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"table\.parquet: not a readable Parquet file"):
        read_clips(tmp_path)


def test_a_folder_named_like_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "spark.parquet").mkdir()
    with pytest.raises(ValueError, match=r"spark\.parquet: not a readable Parquet file"):
        read_clips(tmp_path)


def test_a_column_given_twice_is_named(tmp_path: Path) -> None:
    table = feed_table(20)
    pq.write_table(table.append_column("video", table.column("video")), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: more than one column 'video'"):
        read_clips(tmp_path)


@pytest.mark.parametrize("folder", ["empty", "absent"])
def test_a_folder_without_files_is_named(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=rf"{folder}: no \*\.parquet file here"):
        read_clips(tmp_path / folder)


# One code path, and batches


@pytest.mark.parametrize("seed", range(5))
def test_a_log_is_encoded_as_a_request_with_the_same_values(seed: int) -> None:
    schema = everything()
    raw = random_rows(np.random.default_rng(seed), 200)
    encoder = FeatureEncoder(schema, fitted_of(schema, random_rows(np.random.default_rng(99), 200)))
    kinds = {"history": pa.list_(pa.int64()), "tags": pa.list_(pa.string())}
    table = pa.table({name: pa.array(values, kinds.get(name)) for name, values in raw.items()})
    logged = columns_from_arrow(schema, table)
    for block in ("request", "candidate"):
        asked = {feature.name: raw[feature.name] for feature in schema.requested(block)}
        served = encoder.encode(block, encoder.columns(block, asked, 200), 200, as_served=True)
        trained = encoder.encode(block, logged, 200, as_served=True)
        for name, one, other in zip(served.block._fields, served.block, trained.block, strict=True):
            assert_array_equal(one, other, err_msg=f"{block} {name}", strict=True)
        assert served.missing == trained.missing
        assert served.oov == trained.oov


def encoded_clips(rows: int, *, as_served: bool = False) -> tuple[pa.Table, Rows, FeatureEncoder]:
    table = feed_table(rows)
    columns = columns_from_arrow(CLIPS, table)
    encoder = FeatureEncoder(CLIPS, fit_features(CLIPS, table, columns))
    return table, Rows.encode(CLIPS, encoder, table, columns, as_served=as_served), encoder


def test_a_gathered_batch_holds_the_rows_asked_for_lists_included() -> None:
    table, rows, encoder = encoded_clips(90)
    order = np.random.default_rng(0).integers(0, 90, 40)  # with repeats
    batch = rows.take_batch(torch.from_numpy(order))
    row_of = {video: row for row, video in enumerate(encoder.fitted.vocabularies["video"], start=1)}
    histories = [(table.column("history")[int(row)].as_py() or [])[-3:] for row in order]
    assert batch.request.list_lengths_LB.tolist() == [[len(history) for history in histories]]
    assert batch.request.list_values_V.tolist() == [row_of[video] for history in histories for video in history]
    videos = table.column("video").to_pylist()
    assert batch.candidate.ids_BK[:, 0].tolist() == [row_of[videos[row]] for row in order]
    assert batch.observed_BT[:, 1].tolist() == [float(table.column("like_known")[int(row)].as_py()) for row in order]


def test_several_list_features_are_gathered_like_a_plain_loop() -> None:
    schema = FeedSchema.from_mapping(
        yaml.safe_load("""
name: lists
features:
  - {name: one,   side: candidate, kind: id_list, vocabulary: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], dim: 4, max_length: 5}
  - {name: two,   side: candidate, kind: id_list, table: one, max_length: 2}
  - {name: three, side: candidate, kind: id_list, table: one, max_length: 1}
tasks: [{name: click, kind: binary, label: y}]
"""),
        "test",
    )
    rng = np.random.default_rng(5)
    raw = {
        name: [rng.integers(0, 10, int(rng.integers(0, 7))).tolist() for _ in range(30)]
        for name in ("one", "two", "three")
    }
    table = pa.table({name: pa.array(lists, pa.list_(pa.int64())) for name, lists in raw.items()} | {"y": [0, 1] * 15})
    columns = columns_from_arrow(schema, table)
    encoder = FeatureEncoder(schema, fit_features(schema, table, columns))
    rows = Rows.encode(schema, encoder, table, columns, as_served=False)
    picked = [29, 0, 0, 13, 7]
    batch = rows.take_batch(torch.tensor(picked)).candidate
    kept = [[raw[name][row][-most:] for row in picked] for name, most in (("one", 5), ("two", 2), ("three", 1))]
    assert batch.list_lengths_LB.tolist() == [[len(values) for values in lists] for lists in kept]
    # A vocabulary entry has the row after its place. Row 0 is for the unknown.
    assert batch.list_values_V.tolist() == [value + 1 for lists in kept for values in lists for value in values]


def test_batches_are_all_rows_in_order_the_last_one_shorter() -> None:
    _, rows, _ = encoded_clips(25)
    batches = list(rows.batches(10))
    assert [len(batch.targets_BT) for batch in batches] == [10, 10, 5]
    assert torch.equal(torch.cat([batch.targets_BT for batch in batches]), rows.targets_BT)


def test_targets_are_labels_and_standardised_log_quantities() -> None:
    table, rows, _ = encoded_clips(120)
    known = np.array(table.column("like_known").to_pylist())
    likes = np.array([like or 0 for like in table.column("is_like").to_pylist()])
    logs = np.log1p(table.column("watch_ms").to_numpy())
    assert_array_equal(rows.targets_BT[:, 0].numpy(), table.column("is_click").to_numpy())
    assert_array_equal(rows.targets_BT[:, 1].numpy(), np.where(known, likes, 0))
    np.testing.assert_allclose(rows.targets_BT[:, 2].numpy(), (logs - logs.mean()) / logs.std(), rtol=1e-5, atol=1e-6)
    assert_array_equal(rows.observed_BT.numpy(), np.stack([np.ones(120), known, np.ones(120)], axis=1))


def test_a_training_only_feature_keeps_its_logged_value_unless_served() -> None:
    table, logged, _ = encoded_clips(50)
    _, served, _ = encoded_clips(50, as_served=True)
    every = torch.arange(50)
    # ids of the request block in the schema's order: user_id, tab, position. Vocabulary [0, 1, 2] -> rows 1, 2, 3.
    assert_array_equal(
        logged.take_batch(every).request.ids_BK[:, 2].numpy(), np.array(table.column("position").to_pylist()) + 1
    )
    assert (served.take_batch(every).request.ids_BK[:, 2] == 1).all()


def test_a_masked_label_teaches_no_scale() -> None:
    schema = FeedSchema.from_mapping(
        yaml.safe_load("""
name: masked
features: [{name: x, side: candidate, kind: number}]
tasks: [{name: watch, kind: regression, label: ms, mask: known}]
"""),
        "test",
    )
    table = pa.table({"x": [0.0, 0.0, 0.0], "ms": [10.0, 20.0, None], "known": [True, True, False]})
    scale = fit_features(schema, table, columns_from_arrow(schema, table)).targets["watch"]
    assert (scale.mean, scale.scale) == (15.0, 5.0)
    nothing = table.set_column(2, "known", pa.array([0, 0, 0]))
    with pytest.raises(ValueError, match="no labelled row in the training split"):
        fit_features(schema, nothing, columns_from_arrow(schema, nothing))
