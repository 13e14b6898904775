"""Positives without the outcome that they are given: counted as by a loop, said, and refused above 1 %."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.training.tasks.chain_feed import CHAIN, shop_table, write_shop
from tests.training_data import training_file
from training.config import TrainingConfig
from training.fit.report import report_of_file
from training.train import train

ROWS = 1200


def shop(folder: Path, changed: dict[str, list[int]], **changes: Any) -> TrainingConfig:
    """A training file for a log with some columns changed."""
    table = shop_table(ROWS)
    for name, values in changed.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    write_shop(folder / "data", table)
    return TrainingConfig.load(training_file(folder, schema=changes.pop("schema", CHAIN), **changes))


def with_unclicked(number: int) -> list[int]:
    """`bought` where so many more rows of the training days are, without a click."""
    rows, left = shop_table(ROWS).to_pylist(), number
    bought = [row["bought"] for row in rows]
    for place, row in enumerate(rows):
        if left and row["day"] <= 4 and not row["clicked"]:
            bought[place], left = 1, left - 1
    assert not left
    return bought


def train_rows(column: str, values: list[int] | None = None) -> list[tuple[int, int]]:
    """(clicked, column) of the training days."""
    rows = shop_table(ROWS).to_pylist()
    values = values or [row[column] for row in rows]
    return [(row["clicked"], value) for row, value in zip(rows, values, strict=True) if row["day"] <= 4]


def test_a_report_counts_and_says_them(tmp_path: Path) -> None:
    bought = with_unclicked(40)
    config = shop(tmp_path, {"bought": bought})
    path = report_of_file(config, show=False)
    content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    rows = train_rows("bought", bought)
    positives = sum(label for _, label in rows)
    assert content["splits"]["train"]["tasks"]["buy"]["chain"] == {
        "positives": positives,
        "without_given": 40,
        "rows_without_given": sum(not clicked for clicked, _ in rows),
    }
    assert "chain" not in content["splits"]["train"]["tasks"]["click"]
    said = f"task buy, given click: 40 of {positives} positives ({40 / positives:.2%}) in split train are without it"
    assert said in content["chains"]
    assert said in path.read_text(encoding="utf-8")
    refused = "over 1% of its positives in split {} are without what it is given; training refuses such a chain"
    assert f"task buy: {refused.format('train')}" in content["warnings"]
    assert not any("task buy: over 1% of its positives in split test" in warning for warning in content["warnings"])
    assert sum(about["tasks"]["buy"]["chain"]["without_given"] for about in content["partitions"]) == 40


@pytest.mark.parametrize("read", ["memory", "stream"])
def test_training_refuses_more_than_one_in_a_hundred(read: str, tmp_path: Path) -> None:
    positives = sum(label for _, label in train_rows("bought"))
    most = next(number for number in range(ROWS) if number > 0.01 * (positives + number)) - 1
    data = {"path": str(tmp_path / "data"), "read": read,
            "split": {"column": "day", "train": {"max": 4}, "validation": 5, "test": [6]}}  # fmt: skip
    config = shop(tmp_path, {"bought": with_unclicked(most + 1)}, data=data, epochs=1)
    share = f"{(most + 1) / (positives + most + 1):.1%}"
    with pytest.raises(ValueError, match=f"task buy: {share} of its {positives + most + 1} positives in split train"):
        train(config, show=False)
    # Once more, where a report is kept.
    with pytest.raises(ValueError, match="without 'click', which it is given; a chain never answers more than 'click'"):
        train(config, show=False)
    assert train(config.model_copy(update={"given": {"buy": None, "returns": None}}), show=False).schema.given == (
        (None,) * 4
    )


@pytest.mark.parametrize("read", ["memory", "stream"])
def test_few_are_said(read: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = {"path": str(tmp_path / "data"), "read": read,
            "split": {"column": "day", "train": {"max": 4}, "validation": 5, "test": [6]}}  # fmt: skip
    config = shop(tmp_path, {"bought": with_unclicked(1)}, data=data, epochs=1)
    positives = sum(label for _, label in train_rows("bought")) + 1
    with caplog.at_level(logging.INFO):
        train(config, show=False)
    assert f"task buy, given click: 1 of {positives} positives ({1 / positives:.2%}) in split train" in caplog.text


def test_they_are_counted_before_negatives_are_dropped(tmp_path: Path) -> None:
    """Dropping negatives of click drops what is counted."""
    positives = sum(label for _, label in train_rows("bought"))
    number = int(0.02 * positives)
    data = {"path": str(tmp_path / "data"), "negative_sampling": {"task": "click", "rate": 0.3},
            "split": {"column": "day", "train": {"max": 4}, "validation": 5, "test": [6]}}  # fmt: skip
    with pytest.raises(ValueError, match=f"of its {positives + number} positives"):
        train(shop(tmp_path, {"bought": with_unclicked(number)}, data=data), show=False)


def test_a_mask_that_hides_rows_without_the_outcome_is_refused(tmp_path: Path) -> None:
    """A column that says the same as the label under another name."""
    schema = CHAIN.replace("label: bought, ", "label: bought, mask: seen,")
    table = shop_table(ROWS)
    write_shop(tmp_path / "data", table.append_column("seen", table.column("clicked")))
    config = TrainingConfig.load(training_file(tmp_path, schema=schema))
    with pytest.raises(ValueError, match="task buy: its label counts in no row of split train without 'click'"):
        train(config, show=False)
