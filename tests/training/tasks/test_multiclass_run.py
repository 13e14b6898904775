"""A run with every kind of task, from its log to an artifact's answers."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from model.schema import FeedSchema
from model.scorer.scorer import Scorer
from tests.training_data import SCHEMA, feed_table, sigmoid, training_file
from training.config import TrainingConfig
from training.data.rows import Rows, columns_from_arrow, read_splits
from training.evaluate.evaluate import evaluate, print_table
from training.evaluate.validation import predict
from training.fit.leaks import Twins
from training.fit.report import report_of_file
from training.publish.export import export
from training.run.run import Run
from training.train import train

RATED = f"""{SCHEMA}
  - {{name: rating, kind: multiclass, label: stars, classes: {{1: bad, 2: fair, 3: good}}, mask: is_rated}}
  - {{name: mood, kind: multiclass, label: mood, classes: [calm, loud]}}
"""


TWIN = """
name: feed
features:
  - {name: twin, side: candidate, kind: number}
  - {name: half, side: candidate, kind: number}
tasks: [{name: rating, kind: multiclass, label: stars, classes: {1: bad, 2: fair, 3: good}}]
"""


def rated_log(folder: Path, rows: int = 1500) -> None:
    """The feed's log, where a long watch is rated high by those who rate, and moods follow clicks."""
    table, rng = feed_table(rows), np.random.default_rng(9)
    watch = np.log(table.column("watch_ms").to_numpy()) - 7.0
    stars = (
        1 + (rng.random(rows) < sigmoid(2 * watch)).astype(int) + (rng.random(rows) < sigmoid(watch - 1)).astype(int)
    )
    is_rated = rng.random(rows) < 0.7
    loud = rng.random(rows) < 0.2 + 0.5 * table.column("is_click").to_numpy()
    table = table.append_column("stars", pa.array(stars, mask=~is_rated)).append_column("is_rated", pa.array(is_rated))
    table = table.append_column("mood", pa.array(np.where(loud, "loud", "calm")))
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "log.parquet")


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
