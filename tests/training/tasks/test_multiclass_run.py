"""A run with every kind of task, from its log to an artifact's answers."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.scorer.scorer import Scorer
from tests.training_data import SCHEMA, feed_table, sigmoid, training_file
from training.config import TrainingConfig
from training.data.rows import Rows, columns_from_arrow, read_splits
from training.evaluate.evaluate import evaluate, print_table
from training.evaluate.validation import predict
from training.publish.export import export
from training.run.run import Run
from training.train import train

RATED = f"""{SCHEMA}
  - {{name: rating, kind: multiclass, label: stars, classes: {{1: bad, 2: fair, 3: good}}, mask: is_rated}}
  - {{name: mood, kind: multiclass, label: mood, classes: [calm, loud]}}
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
    return train(TrainingConfig.from_yaml(training_file(folder, schema=RATED, epochs=20, batch_size=32)), show=False)


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
