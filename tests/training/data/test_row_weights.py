"""Row weights from a column: which rows train, what is not weighed, and which columns are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.training_data import assert_same_state, feed_table, saved_state, training_file
from training.config import TrainingConfig
from training.run.run import LAST, LOG, Run
from training.train import train

ROWS = 600


def run_of(folder: Path, weights: Any, *changes: str, table: pa.Table | None = None) -> Run:
    """A finished run on `feed_table` with a column `importance`, or without one where weights is None."""
    table = feed_table(ROWS) if table is None else table
    folder.mkdir()
    (folder / "data").mkdir()
    if weights is not None:
        table = table.append_column("importance", pa.array(weights))
        changes = ("data.weight=importance", *changes)
    pq.write_table(table, folder / "data" / "all.parquet")
    return train(TrainingConfig.load(training_file(folder), changes), show=False)


def state_of(run: Run) -> dict[str, Any]:
    state: dict[str, Any] = saved_state(run.path / LAST)["ranker"]
    return state


def test_a_row_that_weighs_nothing_teaches_nothing(tmp_path: Path) -> None:
    table = feed_table(ROWS)
    silent = np.random.default_rng(0).random(ROWS) < 0.5
    weights = np.where(silent, 0.0, 1.0)
    clicks = np.array(table.column("is_click").to_pylist())
    is_train = np.array(table.column("day").to_pylist()) <= 4
    position = table.schema.get_field_index("is_click")
    turned = table.set_column(position, "is_click", pa.array(np.where(silent & is_train, 1 - clicks, clicks)))
    runs = [run_of(tmp_path / name, weights, table=one) for name, one in (("plain", table), ("turned", turned))]
    assert_same_state(state_of(runs[0]), state_of(runs[1]))
    # With weights that count those rows the same change of labels is felt.
    felt = [run_of(tmp_path / f"all-{name}", np.ones(ROWS), table=t) for name, t in (("a", table), ("b", turned))]
    one, other = (state_of(run) for run in felt)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_weights_of_validation_rows_change_nothing(tmp_path: Path) -> None:
    days = np.array(feed_table(ROWS).column("day").to_pylist())
    weights = np.random.default_rng(1).uniform(0, 3, ROWS)
    one = run_of(tmp_path / "one", weights)
    other = run_of(tmp_path / "other", np.where(days >= 5, 0.0, weights))
    assert (one.path / LOG).read_bytes() == (other.path / LOG).read_bytes()


def test_equal_weights_train_as_none_do(tmp_path: Path) -> None:
    one, other = state_of(run_of(tmp_path / "one", None)), state_of(run_of(tmp_path / "other", np.full(ROWS, 2)))
    for name, tensor in one.items():
        # Rounding of single steps, carried through two epochs.
        torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=1e-4)


def test_changed_weights_are_changed_data(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", np.ones(ROWS))
    table = feed_table(ROWS).append_column("importance", pa.array(np.arange(ROWS)))
    pq.write_table(table, tmp_path / "run" / "data" / "all.parquet")
    with pytest.raises(ValueError, match="the data differ"):
        train(run.config, show=False)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (-1.0, "must be a number from 0 to 1e9, got -1; 1 such row"),
        (None, "got null"),
        (float("nan"), "row 17"),
        (float("inf"), "got inf"),
        (1e30, r"got 1e\+30"),
    ],
)
def test_a_weight_that_is_no_weight_is_refused_with_file_and_row(
    tmp_path: Path, value: float | None, told: str
) -> None:
    weights: list[float | None] = [1.0] * ROWS
    weights[17] = value
    with pytest.raises(ValueError, match=told) as refusal:
        run_of(tmp_path / "run", weights)
    assert "all.parquet: column 'importance' (row weights, data.weight): row 17" in str(refusal.value)


@pytest.mark.parametrize(
    ("weights", "told"), [(["1"] * ROWS, "is string, not a number"), ([0] * ROWS, "weights are 0")]
)
def test_a_column_that_cannot_weigh_is_refused(tmp_path: Path, weights: list[Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        run_of(tmp_path / "run", weights)


def test_an_absent_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no column 'weight'"):
        run_of(tmp_path / "run", None, "data.weight=weight")
