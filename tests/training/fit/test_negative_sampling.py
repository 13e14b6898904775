"""Negative downsampling: which rows are kept, and that answers are those of the whole log."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.special import expit, logit

from model.features.encoder import FeatureEncoder
from model.schema import FeedSchema
from tests.training_data import feed_table, training_file, write_feed
from training.config import NegativeSampling, TrainingConfig
from training.data.arrow import labels_of, observed_of
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, fit_features, read_splits
from training.evaluate.validation import predict
from training.fit.negative_sampling import logit_offsets, weigh_kept_negatives, without_dropped_negatives
from training.publish.export import export
from training.run.run import Run
from training.step.balancing.losses import TaskLosses
from training.train import train

RATE = 0.25


def schema_in(folder: Path) -> FeedSchema:
    return TrainingConfig.load(training_file(folder)).feed_schema()


def test_a_share_of_the_negatives_is_kept_and_every_positive(tmp_path: Path) -> None:
    schema, table = schema_in(tmp_path), feed_table(20_000)
    table = table.append_column("row", pa.array(range(table.num_rows)))
    kept = without_dropped_negatives(table, schema, NegativeSampling(task="click", rate=RATE))
    clicks, all_clicks = (np.asarray(one.column("is_click")) for one in (kept, table))
    assert clicks.sum() == all_clicks.sum()
    negatives = int((all_clicks == 0).sum())
    # Four standard deviations of a binomial.
    assert abs((clicks == 0).sum() - RATE * negatives) < 4 * np.sqrt(RATE * (1 - RATE) * negatives)
    again = without_dropped_negatives(table, schema, NegativeSampling(task="click", rate=RATE))
    assert again.column("row").equals(kept.column("row"))
    other = without_dropped_negatives(table, schema, NegativeSampling(task="click", rate=RATE, seed=1))
    both = len(set(other.column("row").to_pylist()) & set(kept.column("row").to_pylist())) - int(all_clicks.sum())
    # Of another seed they are others: both keep a row by chance alone.
    assert abs(both - RATE**2 * negatives) < 4 * np.sqrt(RATE**2 * negatives)


def test_a_row_without_a_label_is_no_negative(tmp_path: Path) -> None:
    schema, table = schema_in(tmp_path), feed_table(2_000)
    kept = without_dropped_negatives(table, schema, NegativeSampling(task="like", rate=0.01))
    task = next(task for task in schema.tasks if task.name == "like")
    assert (~observed_of(task, kept)).sum() == (~observed_of(task, table)).sum()
    assert labels_of(task, kept).sum() == labels_of(task, table).sum()


def test_the_loss_is_smallest_at_the_odds_of_the_whole_log(tmp_path: Path) -> None:
    schema = schema_in(tmp_path)
    sampling = NegativeSampling(task="click", rate=0.25)
    # 100 positives and 900 negatives, of which 225 are left. The log's rate is a tenth.
    targets_BT = torch.zeros(325, 3)
    targets_BT[:100, 0] = 1.0
    logits_BO = torch.full((325, 3), float(logit(0.1)), requires_grad=True)
    losses_T = TaskLosses(schema, offsets=logit_offsets(schema, sampling))(logits_BO, targets_BT, torch.ones(325, 3))
    (gradient_BT,) = torch.autograd.grad(losses_T[0], logits_BO)
    assert abs(float(gradient_BT[:, 0].sum())) < 1e-6
    # Without the correction that rate would be 100 / 325 instead.
    (plain_BT,) = torch.autograd.grad(TaskLosses(schema)(logits_BO, targets_BT, torch.ones(325, 3))[0], logits_BO)
    assert float(plain_BT[:, 0].sum()) == pytest.approx(0.1 - 100 / 325, abs=1e-6)


def test_other_tasks_count_a_kept_negative_for_those_it_stands_for(tmp_path: Path) -> None:
    schema, table = schema_in(tmp_path), feed_table(300)
    columns = columns_from_arrow(schema, table)
    fitted = fit_features(schema, table, columns)
    rows = Rows.encode(schema, FeatureEncoder(schema, fitted), table, columns, as_served=False)
    before_BT = rows.observed_BT.clone()
    weigh_kept_negatives(rows, schema, NegativeSampling(task="click", rate=RATE))
    is_click_B = torch.from_numpy(np.asarray(table.column("is_click")) == 1)
    assert torch.equal(rows.observed_BT[:, 0], before_BT[:, 0])
    assert torch.equal(rows.observed_BT[is_click_B], before_BT[is_click_B])
    torch.testing.assert_close(rows.observed_BT[~is_click_B, 1:], before_BT[~is_click_B, 1:] * 4)


def ratio(run: Run, task: int, label: str, shift: float = 0.0) -> float:
    """The calibration ratio on the validation split, which is whole, of logits that are shifted."""
    table = read_splits(run.config.data, run.schema, ("validation",))["validation"]
    rows = Rows.encode(run.schema, run.encoder, table, columns_from_arrow(run.schema, table), as_served=False)
    observed_B = rows.observed_BT[:, task].numpy() > 0
    labels_B = rows.targets_BT[:, task].numpy()[observed_B]
    assert label == run.schema.tasks[task].label
    return float(expit(predict(run.best_ranker(), rows)[observed_B, task] + shift).sum() / labels_B.sum())


def test_probabilities_are_those_of_the_log_as_it_was(tmp_path: Path) -> None:
    write_feed(tmp_path / "data", rows=15_000)
    config = training_file(tmp_path, epochs=6, batch_size=32, early_stopping=None)
    sampling = f"{{task: click, rate: {RATE}}}"
    run = train(TrainingConfig.load(config, [f"data.negative_sampling={sampling}"]), show=False)
    # 2,500 validation rows, about half of them clicks: the ratio's own noise is 2 %, and what is learned has some too.
    assert ratio(run, 0, "is_click") == pytest.approx(1.0, abs=0.15)
    # As the loss saw them, without the correction, they answer far too high.
    assert ratio(run, 0, "is_click", -np.log(RATE)) > 1.5
    # A like goes with a click: on the sample, unweighted, likes would look more frequent than they are.
    assert ratio(run, 1, "is_like") == pytest.approx(1.0, abs=0.15)

    version = export(run, tmp_path / "models")
    told = json.loads((version / "manifest.json").read_text())["training"]["config"]["data"]["negative_sampling"]
    assert told == {"task": "click", "rate": RATE, "seed": 0}


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ("{task: watch, rate: 0.5}", "'watch' is no binary task that is learned; there are: click, like"),
        ("{task: nothing, rate: 0.5}", "'nothing' is no binary task"),
        ("{task: click, rate: 0}", "negative_sampling.rate"),
    ],
)
def test_what_cannot_be_sampled_is_refused(tmp_path: Path, sampling: str, message: str) -> None:
    write_feed(tmp_path / "data", rows=300)
    with pytest.raises(ValueError, match=message):
        train(TrainingConfig.load(training_file(tmp_path), [f"data.negative_sampling={sampling}"]), show=False)
