"""Broken files of KuaiRand-Pure are named, and a folder that was prepared before is left alone."""

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.training.datasets.kuairand_log import as_parquet, as_published, make_log
from training.datasets.prepare import prepare


def rewrite(path: Path, column: str, row: int, value: str) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows[row - 1][column] = value
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("file", "column", "value", "message"),
    [
        ("log_standard_4_22_to_5_08_pure.csv", "play_time_ms", "long", "'long' is not an integer"),
        ("log_standard_4_22_to_5_08_pure.csv", "time_ms", "1650812741436.5", "'1650812741436.5' is not an integer"),
        ("log_standard_4_22_to_5_08_pure.csv", "is_like", "2", "2 is not 0 or 1"),
        ("log_standard_4_08_to_4_21_pure.csv", "is_click", "", "the value is missing"),
        ("log_standard_4_08_to_4_21_pure.csv", "user_id", "99", "99 has no row in user_features_pure.csv"),
        ("log_standard_4_22_to_5_08_pure.csv", "duration_ms", "-1", "-1 is negative"),
        ("log_standard_4_22_to_5_08_pure.csv", "date", "20220532", "20220532 is not a day"),
        ("video_features_basic_pure.csv", "tag", "20;43", "'20;43' is not as expected"),
        ("video_features_basic_pure.csv", "upload_dt", "10 April", "'10 April' is not as expected"),
        ("user_features_pure.csv", "user_id", "8", "8 comes twice"),
    ],
)
def test_a_bad_value_is_named_with_file_column_and_row(
    tmp_path: Path, file: str, column: str, value: str, message: str
) -> None:
    source = as_published(tmp_path / "source", make_log(300))
    rewrite(source / "data" / file, column, 4, value)
    with pytest.raises(ValueError, match=message) as error:
        prepare("kuairand", source, tmp_path / "out")
    assert f"{file}: column '{column}', row 4:" in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("file", ["interactions.parquet", "user_history.parquet"])
def test_a_truncated_or_incomplete_parquet_file_is_named(tmp_path: Path, file: str) -> None:
    path = as_parquet(tmp_path / "source", make_log(300)) / file
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{file}: cannot be read, is it truncated"):
        prepare("kuairand", tmp_path / "source", tmp_path / "out")
    path.write_bytes(whole)
    pq.write_table(pq.read_table(path).drop_columns(["user_id"]), path)
    with pytest.raises(ValueError, match=f"{file}: column 'user_id' is missing"):
        prepare("kuairand", tmp_path / "source", tmp_path / "out")
    path.unlink()
    with pytest.raises(ValueError, match=file):
        prepare("kuairand", tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_csv_line_cut_short_is_named(tmp_path: Path) -> None:
    source = as_published(tmp_path / "source", make_log(300))
    path = source / "data" / "log_standard_4_08_to_4_21_pure.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:9]) + "\n" + lines[9][:20])
    with pytest.raises(ValueError, match=rf"{path.name}: cannot be read.*(Row|row) #?(9|10)\b"):
        prepare("kuairand", source, tmp_path / "out")


def test_only_a_prepared_folder_is_replaced(tmp_path: Path) -> None:
    source, out = as_parquet(tmp_path / "source", make_log(300)), tmp_path / "out"
    out.mkdir()
    prepare("kuairand", source, out)  # empty: taken
    (out / "impressions-stale.parquet").write_text("from before")
    prepare("kuairand", source, out)
    assert not (out / "impressions-stale.parquet").exists()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'thesis.txt' beside what is replaced \(1 in all\)"):
        prepare("kuairand", source, out)
    (out / "thesis.txt").unlink()
    (out / "prepared.json").unlink()
    with pytest.raises(ValueError, match=r"is not empty and has no prepared\.json"):
        prepare("kuairand", source, out)
    assert len(list(out.iterdir())) == 4
    with pytest.raises(ValueError, match="dataset 'movielens' is not known; known are kuairand, census"):
        prepare("movielens", source, out)
    with pytest.raises(ValueError, match="no such folder"):
        prepare("kuairand", tmp_path / "nowhere", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_failure_while_writing_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = as_parquet(tmp_path / "source", make_log(300)), tmp_path / "out"
    prepare("kuairand", source, out)
    old = {path.name: path.read_bytes() for path in out.iterdir()}

    def disk_full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", disk_full)
    with pytest.raises(OSError, match="No space left"):
        prepare("kuairand", source, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
