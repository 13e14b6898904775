"""Census-Income: UCI's text and Parquet give the same rows, split by the protocol, and bad files are named."""

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.schema import FeedSchema
from training.datasets.census import COLUMNS
from training.datasets.prepare import prepare

ROOT = Path(__file__).resolve().parents[3]
LABELS = ["income_over_50k", "never_married", "bachelor_or_more", "some_college", "worked", "has_dividends"]
# The first record of census-income.data as published, and changes of it: (position, value).
RECORD = (
    "73, Not in universe, 0, 0, High school graduate, 0, Not in universe, Widowed, Not in universe or children, "
    "Not in universe, White, All other, Female, Not in universe, Not in universe, Not in labor force, 0, 0, 0, "
    "Nonfiler, Not in universe, Not in universe, Other Rel 18+ ever marr not in subfamily, "
    "Other relative of householder, 1700.09, ?, ?, ?, Not in universe under 1 year old, ?, 0, Not in universe, "
    "United-States, United-States, United-States, Native- Born in the United States, 0, Not in universe, 2, 0, 95, "
    "- 50000."
)
INTEGERS = {0, 2, 3, 5, 16, 17, 18, 30, 36, 38, 39, 40}
EDUCATION, MARRIED, INCOME = 4, 7, 41


def records() -> list[list[str]]:
    """Thirteen people who differ in the labels, in numbers and in what is not known of them."""
    rows = []
    for number in range(13):
        fields = RECORD.split(", ")
        fields[0] = str(20 + number)
        fields[5] = str(number * 100)
        fields[21] = "?" if number % 3 == 0 else "Utah"
        fields[11] = "NA" if number % 2 else "All other"
        if number % 4 == 0:
            fields[EDUCATION] = "Doctorate degree(PhD EdD)"
        if number % 5 == 0:
            fields[MARRIED] = "Never married"
        if number % 6 == 0:
            fields[INCOME] = "50000+."
        rows.append(fields)
    return rows


def as_text(folder: Path, rows: list[list[str]], compressed: bool = False) -> Path:
    folder.mkdir()
    text = "".join(", ".join(fields) + "\n" for fields in rows)
    for name in ("census-income.data", "census-income.test"):
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / name).write_text(text)
    return folder


def as_parquet(folder: Path, rows: list[list[str]]) -> Path:
    folder.mkdir()
    columns: dict[str, pa.Array] = {}
    for position, name in enumerate(COLUMNS):
        values = [None if fields[position] == "?" else fields[position] for fields in rows]
        if position in INTEGERS:
            columns[name] = pa.array([int(value) for value in values if value is not None], pa.int16())
        elif name == "instance_weight":
            columns[name] = pa.array([float(value) for value in values if value is not None])
        elif name == "income":
            columns[name] = pa.array([{"- 50000.": "-50000", "50000+.": "50000+"}[value or ""] for value in values])
        else:
            columns[name] = pa.array(values, pa.string()).dictionary_encode()
    for name in ("train.parquet", "test.parquet"):
        pq.write_table(pa.table(columns), folder / name)
    return folder


def test_text_gzip_and_parquet_give_the_same_people(tmp_path: Path) -> None:
    sources = {
        "text": as_text(tmp_path / "text", records()),
        "gzip": as_text(tmp_path / "gzip", records(), compressed=True),
        "parquet": as_parquet(tmp_path / "parquet", records()),
    }
    for name, source in sources.items():
        prepare("census", source, tmp_path / f"{name}-out")
    for split in ("train", "validation", "test"):
        first, *others = [pq.read_table(tmp_path / f"{name}-out" / f"impressions-{split}.parquet") for name in sources]
        assert all(first.equals(other) for other in others)
    train = pq.read_table(tmp_path / "text-out" / "impressions-train.parquet")
    assert train["never_married"].to_pylist() == [int(number % 5 == 0) for number in range(13)]
    assert train["income_over_50k"].to_pylist() == [int(number % 6 == 0) for number in range(13)]
    assert train["bachelor_or_more"].to_pylist() == [int(number % 4 == 0) for number in range(13)]
    assert train["state_of_previous_residence"].to_pylist() == [None if n % 3 == 0 else "Utah" for n in range(13)]
    assert "NA" in train["hispanic_origin"].to_pylist()  # a category, not a null
    assert train["wage_per_hour"].to_pylist() == [number * 100 for number in range(13)]
    assert train["year"].to_pylist() == [95] * 13
    manifest = json.loads((tmp_path / "gzip-out" / "prepared.json").read_text())
    assert manifest["rows"] == {"train": 13, "validation": 6, "test": 7}
    assert [file["name"] for file in manifest["sources"]] == ["census-income.data.gz", "census-income.test.gz"]


def test_preparing_begins_with_what_it_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = as_text(tmp_path / "text", records())
    (source / "census-income.names").touch()
    with caplog.at_level(logging.INFO, "training"):
        prepare("census", source, tmp_path / "out")
    assert caplog.messages == [
        f"{source}: 2 files in 1 folder, 26 rows\n"
        "  train 13 rows, validation 6 rows, test 7 rows; in no split 0 rows\n"
        "  not read: 1 other: census-income.names"
    ]


@pytest.fixture(scope="module")
def real(feedrank_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    out = tmp_path_factory.mktemp("census") / "out"
    prepare("census", feedrank_data("census_income_kdd"), out)
    return {name: pq.read_table(out / f"impressions-{name}.parquet") for name in ("train", "validation", "test")}


@pytest.mark.real_data
def test_real_split_is_the_protocol(real: dict[str, pa.Table], feedrank_data: Callable[[str], Path]) -> None:
    order = np.random.RandomState(20261122).permutation(99_762)
    expected = {"train": np.arange(199_523), "validation": order[:49_881], "test": order[49_881:]}
    for name, rows in expected.items():
        assert set(real[name]["row"].to_pylist()) == set(rows.tolist())
        assert real[name].num_rows == len(rows)
        assert set(real[name]["split"].to_pylist()) == {name}
    source = pq.read_table(feedrank_data("census_income_kdd") / "test.parquet")
    held_out = source.take(real["test"]["row"])
    for name in ("age", "capital_gains", "tax_filer_stat", "country_of_birth_self"):
        assert held_out[name].to_pylist() == real["test"][name].to_pylist()


@pytest.mark.real_data
def test_real_labels_have_the_published_rates(real: dict[str, pa.Table]) -> None:
    # The table in the README beside the data, train and test file (here validation and test together).
    train = {name: real["train"][name].to_numpy() for name in LABELS}
    test = {n: np.concatenate([real["validation"][n].to_numpy(), real["test"][n].to_numpy()]) for n in LABELS}
    assert train["income_over_50k"].sum() == 12_382
    assert train["never_married"].sum() == 86_485
    assert train["bachelor_or_more"].mean() == pytest.approx(0.14766, abs=5e-6)  # the table's rounding
    published = {"some_college": (0.33582, 0.33490), "worked": (0.51894, 0.51997), "has_dividends": (0.10596, 0.10553)}
    for name, rates in published.items():
        assert (train[name].mean(), test[name].mean()) == pytest.approx(rates, abs=5e-6)
    assert test["income_over_50k"].sum() == 6_186
    assert test["never_married"].sum() == 43_143
    assert test["bachelor_or_more"].mean() == pytest.approx(0.14722, abs=5e-6)
    assert real["train"]["state_of_previous_residence"].null_count == 708
    assert real["train"]["migration_code_change_in_msa"].null_count == 99_696


@pytest.mark.real_data
def test_schema_has_the_protocols_features_and_no_label(real: dict[str, pa.Table]) -> None:
    schema = FeedSchema.from_yaml(ROOT / "configs" / "schemas" / "census.yaml")
    names = [feature.name for feature in schema.features]
    assert set(real["train"].column_names) == {*names, *LABELS, "row", "split"}
    assert not {"income", "marital_stat", "education", "instance_weight"} & set(real["train"].column_names)
    kinds = [feature.kind for feature in schema.features]
    assert (kinds.count("id"), kinds.count("number")) == (31, 7)
    assert [task.label for task in schema.tasks] == LABELS[:3]
    six = FeedSchema.from_yaml(ROOT / "configs" / "schemas" / "census_six_tasks.yaml")
    assert {task.label for task in six.tasks} == set(LABELS)
    # What two of its labels are made of.
    assert set(names) - {f.name for f in six.features} == {"weeks_worked_in_year", "dividends_from_stocks"}


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, "old", "column 'age', row 3: 'old' is not a whole number"),
        (5, "?", "column 'wage_per_hour', row 3: '?' is not a whole number"),
        (INCOME, "60000", "column 'income', row 3: '60000' is not -50000 or 50000+"),
    ],
)
def test_a_bad_value_is_named_with_file_column_and_row(tmp_path: Path, position: int, value: str, message: str) -> None:
    rows = records()
    rows[2][position] = value
    source = as_text(tmp_path / "source", rows)
    with pytest.raises(ValueError, match=r"census-income\.data") as error:
        prepare("census", source, tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_short_record_and_a_truncated_file_are_named(tmp_path: Path) -> None:
    rows = records()
    del rows[4][20:]
    with pytest.raises(ValueError, match=r"census-income\.data: cannot be read.*[Rr]ow #?5\b"):
        prepare("census", as_text(tmp_path / "short", rows), tmp_path / "out")

    compressed = as_text(tmp_path / "gzip", records(), compressed=True) / "census-income.test.gz"
    compressed.write_bytes(compressed.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"census-income\.test\.gz: cannot be read, is it truncated"):
        prepare("census", tmp_path / "gzip", tmp_path / "out")

    columns = as_parquet(tmp_path / "parquet", records()) / "test.parquet"
    pq.write_table(pq.read_table(columns).drop_columns(["marital_stat"]), columns)
    with pytest.raises(ValueError, match=r"test\.parquet: column 'marital_stat' is missing"):
        prepare("census", tmp_path / "parquet", tmp_path / "out")

    columns.unlink()
    with pytest.raises(ValueError, match=r"test\.parquet: no such file"):
        prepare("census", tmp_path / "parquet", tmp_path / "out")
    with pytest.raises(ValueError, match=r"has none of train\.parquet, census-income\.data"):
        prepare("census", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
