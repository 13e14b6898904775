"""Evaluation: its numbers equal scikit-learn's and scipy's on the same predictions, and what has no value says why."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import spearmanr
from sklearn.metrics import log_loss, mean_absolute_error, mean_squared_error, roc_auc_score

from model.schema import FeedSchema
from tests.training_data import SCHEMA, Json, feed_table, training_file, write_feed
from training.config import SplitName, TrainingConfig
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, fit_features, labels_of, read_splits
from training.evaluate.evaluate import evaluate, print_table
from training.evaluate.validation import predict
from training.publish.export import export
from training.run.run import Run
from training.train import train

Array = NDArray[np.float64]
WITHOUT_POSITION = "\n".join(line for line in SCHEMA.splitlines() if "training_only" not in line)


@pytest.fixture(scope="module")
def result(finished_run: Run) -> Json:
    return evaluate(finished_run, "test", replicates=50)


def predictions(run: Run, *, as_served: bool, split: SplitName = "test") -> tuple[pa.Table, Array]:
    """A split and its logits."""
    table = read_splits(run.config.data, run.schema, (split,))[split]
    rows = Rows.encode(run.schema, run.encoder, table, columns_from_arrow(run.schema, table), as_served=as_served)
    return table, predict(run.best_ranker(), rows).astype(np.float64)


def grouped_auc(labels: Array, scores: Array, groups: Array) -> float:
    """A plain loop over users, weighted by their impressions."""
    aucs, weights = [], []
    for group in np.unique(groups):
        picked = groups == group
        if 0 < labels[picked].mean() < 1:
            aucs.append(roc_auc_score(labels[picked], scores[picked]))
            weights.append(picked.sum())
    return float(np.average(aucs, weights=weights))


@pytest.mark.parametrize(("key", "as_served"), [("tasks", False), ("tasks_as_served", True)])
def test_binary_metrics_equal_scikit_learns(finished_run: Run, result: Json, key: str, as_served: bool) -> None:
    table, logits_BO = predictions(finished_run, as_served=as_served)
    users = np.array(table.column("user_id").to_pylist())
    known = np.array(table.column("like_known").to_pylist())
    for position, (name, label, observed) in enumerate(
        [("click", "is_click", np.ones_like(known)), ("like", "is_like", known)]
    ):
        labels = np.array(table.column(label).to_pylist(), float)[observed]
        probabilities = expit(logits_BO[observed, position])
        expected = {
            "log_loss": log_loss(labels, probabilities),
            "normalized_entropy": log_loss(labels, probabilities)
            / log_loss(labels, np.full(len(labels), labels.mean())),
            "auc": roc_auc_score(labels, probabilities),
            "gauc": grouped_auc(labels, probabilities, users[observed]),
            "calibration_ratio": probabilities.sum() / labels.sum(),
        }
        task = result[key][name]
        assert {metric: task[metric]["value"] for metric in expected} == pytest.approx(expected, rel=1e-9)
        assert (task["rows"], task["positives"]) == (observed.sum(), labels.sum())
        for metric in expected:
            assert task[metric]["low"] <= task[metric]["value"] <= task[metric]["high"]


def factor_to_the_mean(run: Run) -> float:
    """Labels over bare answers on the validation split: what few rows make of a map."""
    table, logits_BO = predictions(run, as_served=False, split="validation")
    scale = run.fitted.targets["watch"]
    bare = np.expm1(np.maximum(logits_BO[:, 2] * scale.scale + scale.mean, 0))
    return float(table.column("watch_ms").to_numpy().sum() / bare.sum())


def share_in_order(true: np.ndarray, predicted: np.ndarray) -> float:
    """XAUC, pair by pair."""
    orders = [np.sign(x[:, None] - x[None, :]) for x in (true, predicted)]
    counts = orders[0] != 0
    return float(((1 + orders[0] * orders[1]) / 2)[counts].mean())


def test_regression_metrics_equal_scipys_in_both_scales(finished_run: Run, result: Json) -> None:
    table, logits_BO = predictions(finished_run, as_served=False)
    train_table = read_splits(finished_run.config.data, finished_run.schema, ("train",))["train"]
    train_logs = np.log1p(train_table.column("watch_ms").to_numpy())
    values = table.column("watch_ms").to_numpy()
    learned = np.maximum(logits_BO[:, 2] * train_logs.std() + train_logs.mean(), 0)
    for measured, true, predicted in (
        (result["tasks"]["watch"], values, np.expm1(learned) * factor_to_the_mean(finished_run)),
        (result["tasks"]["watch"]["log1p"], np.log1p(values), learned),
    ):
        squared = mean_squared_error(true, predicted)
        expected = {
            "mse": squared,
            "rmse": np.sqrt(squared),
            "mae": mean_absolute_error(true, predicted),
            "spearman": spearmanr(true, predicted).statistic,
            "xauc": share_in_order(true, predicted),
            "calibration_ratio": predicted.sum() / true.sum(),
        }
        assert {metric: measured[metric]["value"] for metric in expected} == pytest.approx(expected, rel=1e-9)


def test_scores_as_served_have_every_position_at_the_serving_value(finished_run: Run, result: Json) -> None:
    table, logits_BO = predictions(finished_run, as_served=True)
    place = table.schema.get_field_index("position")
    moved = table.set_column(place, "position", pa.array([0] * table.num_rows))
    columns = columns_from_arrow(finished_run.schema, moved)
    rows = Rows.encode(finished_run.schema, finished_run.encoder, moved, columns, as_served=False)
    np.testing.assert_array_equal(predict(finished_run.best_ranker(), rows), logits_BO.astype(np.float32))
    assert result["tasks"]["click"]["auc"] != result["tasks_as_served"]["click"]["auc"]


def test_without_training_only_features_there_is_one_measure(tmp_path: Path) -> None:
    write_feed(tmp_path / "data", 400)
    run = train(TrainingConfig.load(training_file(tmp_path, schema=WITHOUT_POSITION, epochs=1)), show=False)
    assert "tasks_as_served" not in evaluate(run, "test", replicates=2)


def test_the_written_file_is_strict_json_and_the_result(finished_run: Run, result: Json) -> None:
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    text = (finished_run.path / "evaluation-test.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == result
    assert result["split"] == "test"
    assert result["intervals"] == {"level": 0.95, "over": "user_id", "replicates": 50, "rows_without_group": 0}


def test_the_same_run_gives_the_same_numbers_again(finished_run: Run, result: Json) -> None:
    assert evaluate(finished_run, "test", replicates=50) == result


def test_another_split_has_its_own_file(finished_run: Run) -> None:
    measured = evaluate(finished_run, "validation", replicates=2)
    days = feed_table(1500).column("day").to_pylist()
    assert measured["rows"] == days.count(5)
    assert (finished_run.path / "evaluation-validation.json").exists()


def test_the_validation_split_is_measured_by_maps_that_did_not_see_the_row(finished_run: Run) -> None:
    measured = evaluate(finished_run, "validation", replicates=2)["tasks"]["watch"]
    assert measured["label_mean"] == "cross-fitted on the validation split"
    assert measured["calibration_ratio"]["value"] == pytest.approx(1, abs=0.03)
    # By a map that saw every label it would be exactly 1.
    assert abs(measured["calibration_ratio"]["value"] - 1) > 1e-9
    assert measured["log1p"]["calibration_ratio"]["value"] != measured["calibration_ratio"]["value"]


def test_without_labels_to_fit_a_mean_on_the_bare_inverse_is_measured_and_said(tmp_path: Path) -> None:
    schema = SCHEMA.replace("label: watch_ms,", "label: watch_ms, mask: watch_known,")
    table = feed_table(400)
    known = np.array(table.column("day").to_pylist()) != 5
    table = table.append_column("watch_known", pa.array(known))
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "all.parquet")
    run = train(TrainingConfig.load(training_file(tmp_path, schema=schema, epochs=1)), show=False)
    watch = evaluate(run, "test", replicates=2)["tasks"]["watch"]
    assert watch["label_mean"] == "none: 0 labels of the validation split are above 0, 20 are needed"
    tested, logits_BO = predictions(run, as_served=False)
    scale = run.fitted.targets["watch"]
    bare = np.expm1(np.maximum(logits_BO[:, 2] * scale.scale + scale.mean, 0))
    ratio = bare.sum() / tested.column("watch_ms").to_numpy().sum()
    assert watch["calibration_ratio"]["value"] == pytest.approx(ratio, rel=1e-9)
    assert evaluate(run, "validation", replicates=2)["tasks"]["watch"]["rows"] == 0


def run_on_changed_test_day(folder: Path, **values: float) -> Run:
    """A run whose test day has one value in the given columns."""
    table = feed_table(500)
    test = np.array(table.column("day").to_pylist()) == 6
    for name, value in values.items():
        old = np.nan_to_num(np.array(table.column(name).to_pylist(), float))
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(np.where(test, value, old)))
    (folder / "data").mkdir()
    pq.write_table(table, folder / "data" / "all.parquet")
    return train(TrainingConfig.load(training_file(folder, epochs=1)), show=False)


def test_a_task_with_one_class_or_no_label_says_why_it_has_no_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_on_changed_test_day(tmp_path, is_click=0, like_known=0, watch_ms=5)
    result = evaluate(run, "test", replicates=20)
    click, like, watch = (result["tasks"][name] for name in ("click", "like", "watch"))
    for metric in ("auc", "gauc", "normalized_entropy", "calibration_ratio"):
        assert click[metric]["value"] is None
        assert click[metric]["reason"]
        assert like[metric] == {"value": None, "low": None, "high": None, "reason": "no rows"}
    assert click["log_loss"]["value"] > 0
    assert (like["rows"], click["positives"]) == (0, 0)
    assert watch["spearman"]["value"] is None
    assert watch["mse"]["value"] > 0
    print_table(result)
    assert "like" in capsys.readouterr().out


def test_the_printed_table_shows_every_task_and_its_values(result: Json, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(result)
    printed = capsys.readouterr().out
    for name, task in result["tasks"].items():
        assert name in printed
        metric = "auc" if task["kind"] == "binary" else "spearman"
        assert f"{task[metric]['value']:.3f}" in printed
    assert "95 % intervals from 50 bootstrap samples over user_id" in printed
    logged, served = printed.split("As served")
    assert "As logged: what was learned" in logged
    assert "serving value" in served
    # A probability at another position than the label's says nothing by its size.
    assert "calibration" not in served
    assert "NE" not in served
    for task in result["tasks_as_served"].values():
        assert f"{task['auc' if task['kind'] == 'binary' else 'spearman']['value']:.3f}" in served


def test_rows_are_the_groups_where_no_user_column_is_named(tmp_path: Path) -> None:
    write_feed(tmp_path / "data", 400)
    config = TrainingConfig.load(training_file(tmp_path, epochs=1), ["data.group_by=null"])
    result = evaluate(train(config, show=False), "test", replicates=20)
    click = result["tasks"]["click"]
    assert result["intervals"]["over"] == "rows"
    assert click["groups"] == click["rows"] == result["rows"]
    assert click["gauc"]["value"] is None


def changed_users(folder: Path, users: Any) -> Run:
    table = feed_table(400)
    (folder / "data").mkdir()
    pq.write_table(table.append_column("person", users(table)), folder / "data" / "all.parquet")
    config = TrainingConfig.load(training_file(folder, epochs=1), ["data.group_by=person"])
    return train(config, show=False)


@pytest.mark.parametrize("kind", ["string", "dictionary", "double"])
def test_users_of_any_type_make_the_same_groups(tmp_path: Path, kind: str) -> None:
    def users(table: pa.Table) -> pa.Array:
        names = table.column("user_id").cast(pa.float64() if kind == "double" else pa.string())
        return names.dictionary_encode() if kind == "dictionary" else names

    run = changed_users(tmp_path, users)
    measured = evaluate(run, "test", replicates=5)["tasks"]["click"]
    table, logits_BO = predictions(run, as_served=False)
    labels = labels_of(run.schema.tasks[0], table)
    people = np.array(table.column("user_id").to_pylist())
    assert measured["gauc"]["value"] == pytest.approx(grouped_auc(labels, logits_BO[:, 0], people), rel=1e-9)
    assert measured["groups"] == len(np.unique(people))


def test_rows_without_a_user_are_one_group_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def users(table: pa.Table) -> pa.Array:
        known = table.column("user_id").cast(pa.string()).to_pylist()
        return pa.array([None if row % 7 == 0 else user for row, user in enumerate(known)])

    run = changed_users(tmp_path, users)
    result = evaluate(run, "test", replicates=5)
    table, logits_BO = predictions(run, as_served=False)
    people = np.array([user or "nobody" for user in table.column("person").to_pylist()])
    labels = labels_of(run.schema.tasks[0], table)
    measured = result["tasks"]["click"]
    assert measured["gauc"]["value"] == pytest.approx(grouped_auc(labels, logits_BO[:, 0], people), rel=1e-9)
    assert measured["groups"] == len(np.unique(people))
    assert measured["auc"]["low"] is not None
    assert result["intervals"]["rows_without_group"] == (people == "nobody").sum() > 0
    print_table(result)
    said = " ".join(capsys.readouterr().out.split())
    assert f"{(people == 'nobody').sum()} rows without it are one group" in said
    assert export(run, tmp_path / "models").is_dir()
    manifest = json.loads((tmp_path / "models" / "clips" / "1" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["metrics"]["test"]["tasks"]["click"]["gauc"] == measured["gauc"]


def test_users_of_a_type_that_makes_no_groups_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.group_by: column 'person' of type list.* does not name users"):
        changed_users(tmp_path, lambda table: pa.array([[1]] * table.num_rows))  # before it trains


def test_a_run_without_a_test_split_is_measured_on_another(tmp_path: Path) -> None:
    write_feed(tmp_path / "data", 400)
    config = TrainingConfig.load(training_file(tmp_path, epochs=1), ["data.split.test=null"])
    run = train(config, show=False)
    with pytest.raises(ValueError, match=r"data\.split\.test is not given"):
        evaluate(run, "test")
    assert evaluate(run, "validation", replicates=2)["split"] == "validation"


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    config = TrainingConfig.load(training_file(tmp_path))
    schema = FeedSchema.from_yaml(config.feed)
    write_feed(tmp_path / "data", 200)
    table = feed_table(200)
    Run(config.output, config, schema, fit_features(schema, table, columns_from_arrow(schema, table))).write()
    with pytest.raises(ValueError, match="has not finished"):
        evaluate(Run.open(config.output))
