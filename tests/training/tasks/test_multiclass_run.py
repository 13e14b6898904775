"""A run with every kind of task, from its log to an artifact's answers."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from model.ranker import Network
from model.schema import FeedSchema
from model.scorer.scorer import Scorer
from tests.training.tasks.rated_feed import RATED, rated_log
from tests.training_data import training_file
from training.__main__ import main
from training.config import TrainingConfig
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, read_splits
from training.evaluate.evaluate import evaluate, print_table
from training.evaluate.validation import predict
from training.fit.leaks import Twins
from training.fit.report import report_of_file
from training.inspect.inspect import inspect
from training.publish.export import export
from training.run.history import OBJECTIVE, TRAIN_LOSS, read_log
from training.run.run import Run
from training.start.warm_network import Side, fill_network
from training.train import train

TWIN = """
name: feed
features:
  - {name: twin, side: candidate, kind: number}
  - {name: half, side: candidate, kind: number}
tasks: [{name: rating, kind: multiclass, label: stars, classes: {1: bad, 2: fair, 3: good}}]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("rated")
    rated_log(folder / "data")
    return train(TrainingConfig.load(training_file(folder, schema=RATED, epochs=20, batch_size=32)), show=False)


def test_exported_answers_are_the_softmax_of_the_ranker_s_logits(run: Run, tmp_path: Path) -> None:
    scorer = Scorer.load(export(run, tmp_path / "models"))
    outputs = ["click", "like", "watch", "rating.bad", "rating.fair", "rating.good", "mood.calm", "mood.loud"]
    assert scorer.outputs == outputs
    table = read_splits(run.config.data, run.schema, ("test",))["test"].slice(0, 40)
    columns = columns_from_arrow(run.schema, table.slice(0, 1)), columns_from_arrow(run.schema, table)
    answers_NO = scorer.score(*scorer.encode(*columns, table.num_rows)).answers_NO
    # As one request: its user and context are those of the first row.
    user = [feature.name for feature in run.schema.block("request")]
    for name in user:
        index = table.column_names.index(name)
        value = table.column(name)[0].as_py()
        table = table.set_column(index, name, pa.array([value] * table.num_rows, table.column(name).type))
    rows = Rows.encode(run.schema, run.encoder, table, columns_from_arrow(run.schema, table), as_served=True)
    powers = np.exp(predict(run.best_ranker(), rows).astype(np.float64))
    for place in (slice(3, 6), slice(6, 8)):
        expected = powers[:, place] / powers[:, place].sum(axis=1, keepdims=True)
        # float32 sums of some hundred products in another order.
        np.testing.assert_allclose(answers_NO[:, place], expected, atol=1e-5)
        np.testing.assert_allclose(answers_NO[:, place].sum(axis=1), 1.0, atol=1e-6)
    assert set(scorer.reference.scores) == set(outputs)


def test_a_report_has_the_share_of_each_class(run: Run, tmp_path: Path) -> None:
    path = report_of_file(run.config.model_copy(update={"output": tmp_path}), show=False)
    train = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["splits"]["train"]["tasks"]["rating"]
    rows = pq.read_table(f"{run.config.data.path}/log.parquet").to_pylist()
    stars = [row["stars"] for row in rows if row["day"] <= 4 and row["is_rated"]]
    assert train["class_shares"] == pytest.approx(
        {name: stars.count(value) / len(stars) for value, name in ((1, "bad"), (2, "fair"), (3, "good"))}
    )
    assert train["against_train"] == {f"rating.{name}": 1.0 for name in ("bad", "fair", "good")}
    assert f"good {stars.count(3) / len(stars):.1%}" in path.read_text(encoding="utf-8")


def test_a_feature_with_a_value_for_each_class_is_named() -> None:
    schema = FeedSchema.from_mapping(yaml.safe_load(TWIN), "test")
    stars = np.arange(60) % 3 + 1
    columns = {"twin": 7 - 2 * stars, "half": np.minimum(stars, 2), "stars": stars}
    table = pa.table(columns)
    twins = Twins(schema)
    twins.add(table, columns_from_arrow(schema, table))
    (found,) = twins.warnings()
    assert found.startswith("feature twin: its values are decided by label 'stars' of task rating in all 60 rows")


def test_a_label_of_one_class_is_refused_by_its_name(run: Run, tmp_path: Path) -> None:
    rated_log(tmp_path / "data", 300)
    table = pq.read_table(tmp_path / "data" / "log.parquet")
    index = table.column_names.index("stars")
    pq.write_table(table.set_column(index, "stars", pa.array([2] * 300)), tmp_path / "data" / "log.parquet")
    with pytest.raises(
        ValueError, match=r"task rating: label 'stars' is fair in all .* rows of split train that count"
    ):
        train(TrainingConfig.load(training_file(tmp_path, schema=RATED)), show=False)


def test_an_evaluation_has_each_class(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(run, "test", replicates=20)
    rating = found["tasks"]["rating"]
    assert list(rating["classes"]) == ["bad", "fair", "good"]
    assert rating["rows"] == sum(one["rows"] for one in rating["classes"].values())
    # What the log was drawn from can be learned: far from guessing, in 1,000 rows.
    assert rating["macro_auc"]["value"] > 0.6
    assert rating["normalized_entropy"]["value"] < 1.0
    print_table(found)
    shown = capsys.readouterr().out
    assert "accuracy" in shown
    assert "good" in shown


def test_calibrated_probabilities_sum_to_1_and_to_the_labels(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.tasks.probability_maps.MIN_ROWS", 100)
    monkeypatch.setattr("training.tasks.probability_maps.MIN_OF_EACH_CLASS", 5)
    scorer = Scorer.load(export(run, tmp_path / "models", calibration="platt"))
    about = scorer.manifest.metrics["calibration"]["tasks"]["rating"]
    # The map is fitted there: its totals are the labels'.
    assert about["validation"]["after"]["calibration_ratio"] == pytest.approx(
        dict.fromkeys(("bad", "fair", "good"), 1.0)
    )
    assert about["validation"]["after"]["normalized_entropy"] <= about["validation"]["before"]["normalized_entropy"]
    for golden in scorer.golden_requests()["requests"]:
        expected = golden["expected"]
        for classes in (("rating.bad", "rating.fair", "rating.good"), ("mood.calm", "mood.loud")):
            totals = np.sum([expected[name] for name in classes], axis=0)
            np.testing.assert_allclose(totals, 1.0, atol=1e-6)  # of float32


def test_batch_scoring_has_a_column_for_each_class(run: Run, tmp_path: Path) -> None:
    version = export(run, tmp_path / "models")
    assert main(["score", str(version), str(run.config.data.path), "--out", str(tmp_path / "out")]) == 0
    scored = pq.read_table(tmp_path / "out")
    totals = np.sum([scored.column(f"answer_rating.{name}").to_numpy() for name in ("bad", "fair", "good")], axis=0)
    np.testing.assert_allclose(totals, 1.0, atol=1e-6)  # of float32


def test_classes_are_taken_from_a_parent_by_name(run: Run) -> None:
    """Another order and a new class: rows of the last layer go with their names, and the new one stays fresh."""
    changed = RATED.replace("{1: bad, 2: fair, 3: good}", "{3: good, 4: great, 1: bad, 2: fair}")
    schema = FeedSchema.from_mapping(yaml.safe_load(changed), "test")
    config, parent = run.config.network, run.best_ranker()
    ours = Network(config, parent.embeddings.width, schema.output_counts)
    tasks = [task.name for task in schema.tasks]
    last, source = (network.slots(tasks)["tower.rating.1.weight"] for network in (ours, parent.network))
    fresh = last.clone()
    features = {feature.name for feature in schema.features}
    states = dict(fill_network(Side(ours, config, schema), Side(parent.network, config, run.schema), features))
    assert states["tower.rating"] == "part"
    assert torch.equal(last[[2, 3, 0]], source)
    assert torch.equal(last[1], fresh[1])


@pytest.mark.parametrize("kind", ["uncertainty", "pcgrad", "gradnorm"])
def test_balancing_has_one_loss_a_task(kind: str, tmp_path: Path) -> None:
    rated_log(tmp_path / "data", 400)
    file = training_file(tmp_path, schema=RATED, balancing={"kind": kind}, epochs=1)
    (line,) = read_log(train(TrainingConfig.load(file), show=False))
    losses = [line[f"{TRAIN_LOSS}{task}"] for task in ("click", "like", "watch", "rating", "mood")]
    assert np.isfinite(losses).all()
    # About those of guessing: 3 and 2 classes.
    assert losses[3:] == pytest.approx([np.log(3), np.log(2)], abs=0.3)


@pytest.mark.parametrize("reward", ["correct", "log_likelihood"])
def test_routes_are_rewarded_by_classes(reward: str, tmp_path: Path) -> None:
    rated_log(tmp_path / "data", 400)
    schema = RATED.replace("  - {name: watch, kind: regression, label: watch_ms, transform: log1p}\n", "")
    fusion = {"kind": "learned_routing", "levels": [8, 8], "num_modules": 2, "reward": reward}
    file = training_file(tmp_path, schema=schema, network={"fusion": fusion, "tower": [4]}, epochs=1)
    (line,) = read_log(train(TrainingConfig.load(file), show=False))
    assert np.isfinite(line[OBJECTIVE])


def test_inspection_goes_by_tasks(run: Run) -> None:
    found = inspect(run)
    assert found["gradient_conflicts"]["tasks"] == ["click", "like", "watch", "rating", "mood"]
