"""Halves of users: the validation days' users are split by a hash, the same in memory, as a stream and on every day."""

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.data.log_files import SCHEMA, data_config, numbered
from training.config import DataConfig, SplitName
from training.data.index import index_of
from training.data.moving.halves import in_second_half
from training.data.moving.windows import resolved
from training.data.reader import LogReader
from training.data.rows import read_log

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
FIRST = date(2024, 3, 1)
USERS = [f"u{number}" for number in range(40)]


def halved(folder: Path, **changes: Any) -> DataConfig:
    split = {"column": "day", "train": {"days": 2}, "validation": {"days": 1}, "halve_validation": True}
    return resolved(data_config(folder, split=split, group_by="who", **changes))


def write_days(folder: Path, users: Sequence[str | None], *, is_folder: bool, row_group_size: int) -> None:
    """Three days, in each the rows of all users."""
    for ahead in range(3):
        day = int(f"{FIRST + timedelta(days=ahead):%Y%m%d}")
        table = numbered(range(ahead * 100, ahead * 100 + len(users))).append_column("who", pa.array(users))
        place = folder / f"day={day}" if is_folder else folder
        place.mkdir(parents=True, exist_ok=True)
        if not is_folder:
            table = table.append_column("day", pa.array([day] * len(users), pa.int32()))
        pq.write_table(table, place / f"{ahead}.parquet", row_group_size=row_group_size)


@pytest.mark.parametrize("is_folder", [True, False])
@pytest.mark.parametrize("max_bad_rows", [0, 5])
def test_each_user_of_the_newest_day_either_validates_or_tests(
    tmp_path: Path, is_folder: bool, max_bad_rows: int
) -> None:
    users = [*USERS, *USERS[:7], None]
    write_days(tmp_path, users, is_folder=is_folder, row_group_size=11)
    config = halved(tmp_path, max_bad_rows=max_bad_rows)
    assert config.has_test
    tables, found = read_log(config, SCHEMA, SPLITS, ("who",))
    numbers = {split: table.column("number").to_pylist() for split, table in tables.items()}
    assert numbers["train"] == [*range(48), *range(100, 148)]
    assert sorted(numbers["validation"] + numbers["test"]) == [*range(200, 248)]
    of_half = [set(tables[split].column("who").to_pylist()) for split in ("validation", "test")]
    assert not of_half[0] & of_half[1]
    # Of 40 users each half has 4 standard deviations of a fair coin at least.
    assert min(len(half) for half in of_half) >= 40 / 2 - 4 * np.sqrt(40) / 2
    index = index_of(LogReader(config, SCHEMA))
    assert {split: index.rows(split) for split in SPLITS} == {split: len(rows) for split, rows in numbers.items()}
    assert found.splits == {split: len(rows) for split, rows in numbers.items()}


def test_a_user_is_in_one_half_in_whatever_form_and_order() -> None:
    numbers = pa.chunked_array([[5, 17, None], [17, 4]])
    texts = pa.chunked_array([["17", "4"], ["5", None]])
    of_numbers = dict(zip(numbers.to_pylist(), in_second_half(numbers).to_pylist(), strict=True))
    of_texts = dict(zip(texts.to_pylist(), in_second_half(texts).to_pylist(), strict=True))
    assert {str(user): half for user, half in of_numbers.items()} == {str(u): half for u, half in of_texts.items()}
    many = in_second_half(pa.chunked_array([list(range(10_000))])).to_pylist()
    assert abs(sum(many) - 5000) <= 4 * np.sqrt(10_000) / 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"group_by": None}, "name their column as group_by"), ({"test": {"days": 1}}, "leave test out")],
)
def test_halves_need_users_and_are_the_test_split(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    split = {"column": "day", "train": {"days": 2}, "validation": {"days": 1}, "halve_validation": True}
    with pytest.raises(ValueError, match=said):
        data_config(tmp_path, split={**split, **({"test": changes["test"]} if "test" in changes else {})},
                    group_by=changes.get("group_by", "who"))  # fmt: skip
