"""Training that stops being finite names the step, the columns and rows that stand out, and the layer."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.training_data import SCHEMA, feed_table, saved_state, training_file
from training.config import TrainingConfig
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, read_splits
from training.run.run import LAST, Run
from training.step.divergence import diverged
from training.train import train

RAW = SCHEMA.replace("transform: [log1p, standardise], missing: 9", "missing: 9")


def config_of(folder: Path, *changes: str, poisoned: str | None = None, **top_level: Any) -> TrainingConfig:
    """A training file. Every fifth row of the `poisoned` column is absurd."""
    table = feed_table(600)
    if poisoned is not None:
        values = np.nan_to_num(np.array(table.column(poisoned).to_pylist(), float))
        values[::5] = 1e30
        table = table.set_column(table.schema.get_field_index(poisoned), poisoned, pa.array(values))
    (folder / "data").mkdir()
    pq.write_table(table, folder / "data" / "all.parquet")
    return TrainingConfig.load(training_file(folder, **top_level), changes)


def test_a_poisoned_column_is_named_with_its_row(tmp_path: Path) -> None:
    # The encoder cuts numbers at 1e9: it takes a high rate too before they break anything.
    config = config_of(tmp_path, "optimizer.dense.learning_rate=1e20", poisoned="duration", schema=RAW)
    with pytest.raises(ValueError, match=r"the loss is not finite in epoch 1, step [23]; the first value") as raised:
        train(config, show=False)
    found = re.search(r"beyond 10000 after its transforms: feature 'duration' 1e\+09 in row (\d+) ", str(raised.value))
    assert found is not None
    assert int(found[1]) % 5 == 0


def test_a_huge_learning_rate_names_the_layer_and_no_column(tmp_path: Path) -> None:
    config = config_of(tmp_path, "optimizer.dense.learning_rate=1e30", "checkpoint_seconds=1e-9")
    told = r"not finite in epoch 1, step [23]; the first value that is not finite is the output of the (fusion|tower)"
    with pytest.raises(ValueError, match=told) as raised:
        train(config, show=False)
    assert "after its transforms" not in str(raised.value)
    for name, weights in saved_state(config.output / LAST)["ranker"].items():
        assert torch.isfinite(weights).all(), name


@pytest.fixture(scope="module")
def rows(finished_run: Run) -> Rows:
    """The validation split of the small feed."""
    run = finished_run
    table = read_splits(run.config.data, run.schema, ("validation",))["validation"]
    return Rows.encode(run.schema, run.encoder, table, columns_from_arrow(run.schema, table), as_served=False)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ("embeddings.collection.embedding_bags.tab.weight", "in the embedding of feature 'tab'"),
        ("network.fusion.levels.0.gates.0.bias", "the fusion network (levels.0.gates.0)"),
        ("network.towers.1.layers.0.bias", "the tower of task 'like' (layers.0)"),
        ("network.towers.2.layers.2.bias", "the tower of task 'watch' (layers.2)"),
    ],
)
def test_the_first_broken_part_is_named(finished_run: Run, rows: Rows, weights: str, told: str) -> None:
    ranker = finished_run.best_ranker()
    with torch.no_grad():
        ranker.state_dict()[weights].fill_(torch.nan)
    rows_B = torch.arange(20)
    message = str(diverged(finished_run, ranker, rows.take_batch(rows_B), "validation", "the loss is not finite"))
    assert message.startswith(f"{finished_run.path}: the loss is not finite; the first value that is not finite is ")
    assert f" {told};" in message


def test_a_loss_beyond_float_is_told_from_finite_logits(finished_run: Run, rows: Rows) -> None:
    targets_BT = rows.targets_BT.clone()
    targets_BT[7, 2] = 1e30
    wide = Rows.__new__(Rows)
    wide.__dict__ |= {**rows.__dict__, "targets_BT": targets_BT}
    message = str(
        diverged(finished_run, finished_run.best_ranker(), wide.take_batch(torch.arange(20)), "train", "what")
    )
    assert "all logits are finite, the loss of task 'watch' is not" in message
    assert "label of task 'watch' 1e+30 in row 7 (rows of the train split, from 0)" in message
