"""The baseline of boosted trees as a cell of a comparison, on a small feed."""

import json
import sys
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from tests.training.compare.test_compare_run import NETWORKS, experiment_file, results_of
from tests.training_data import feed_table, write_feed
from training.compare import workers
from training.compare.boosted_trees import train_trees
from training.compare.runner import compare, load
from training.compare.tree_config import TreesConfig
from training.run.run import Run

ROWS = 900
TREES: dict[str, Any] = {"name": "trees", "lightgbm": {"trees": 40, "early_stopping": 5, "min_rows_per_leaf": 10}}
ALL_METRICS = ["auc", "normalized_entropy", "mse"]


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    write_feed(tmp_path / "data", ROWS)
    return tmp_path


def file_of(folder: Path, trees: dict[str, Any] = TREES, **changes: Any) -> Path:
    return experiment_file(folder, networks=[NETWORKS[0], trees], metrics=ALL_METRICS, **changes)


def with_settings(**settings: Any) -> dict[str, Any]:
    return {**TREES, "lightgbm": {**TREES["lightgbm"], **settings}}


def outputs(folder: Path, seed: int = 0, split: str = "test") -> Any:
    return np.load(folder / f"out/clips/trees/seed-{seed}/predictions-{split}.npz")["outputs_BO"]


def labels(column: str, day: int) -> Any:
    table = feed_table(ROWS)
    return table.column(column).to_numpy()[table.column("day").to_numpy() == day]


def test_trees_stand_beside_a_network_and_are_trained_once(feed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []

    def spy(config: TreesConfig) -> Run:
        trained.append(config.seed)
        return train_trees(config)

    monkeypatch.setattr(workers, "train_trees", spy)
    compare(load(file_of(feed, baseline="trees"), {}))
    compare(load(file_of(feed, baseline="trees"), {}))
    assert trained == [0, 1]
    results = results_of(feed)
    assert not results["failures"]
    tables = results["datasets"]["clips"]["tables"]["test"]
    found = tables["auc"]["click"]["trees"]["values"]["0"]
    assert found == pytest.approx(roc_auc_score(labels("is_click", 6), outputs(feed)[:, 0]), abs=1e-12)
    # Clicks follow video, user and position, and 600 rows show a good part of it.
    assert found > 0.6
    # Both regress log1p of the milliseconds, whose variance is what a constant would leave.
    assert tables["mse"]["watch"]["trees"]["mean"] < np.var(np.log1p(labels("watch_ms", 6)))
    assert not np.array_equal(outputs(feed, 0), outputs(feed, 1)), "seeds draw other rows and features"
    cost = results["datasets"]["clips"]["cost"]["trees"]
    assert cost["parameters"] is None
    assert cost["leaves"] > 0
    markdown = (feed / "out" / "results.md").read_text(encoding="utf-8")
    assert f"| trees | {cost['leaves']:,.0f} leaves | - | - | - |" in markdown


def test_answers_are_those_of_lightgbm_called_by_hand(feed: Path) -> None:
    settings = {"encodings": None, "row_fraction": 1.0, "feature_fraction": 1.0, "max_categories": 0}
    compare(load(file_of(feed, with_settings(**settings)), {"seeds": 1}))
    table = feed_table(ROWS)
    day = table.column("day").to_numpy()
    lengths = [min(len(history or []), 3) for history in table.column("history").to_pylist()]
    inputs = np.column_stack([lengths, table.column("duration").to_numpy()]).astype(np.float32)
    clicks = table.column("is_click").to_numpy()
    parameters = {
        "objective": "binary",
        "learning_rate": 0.05,
        "num_leaves": 31,
        "min_data_in_leaf": 10,
        "verbosity": -1,
        "num_threads": 1,
    }
    train = lightgbm.Dataset(inputs[day <= 4], clicks[day <= 4])
    validation = lightgbm.Dataset(inputs[day == 5], clicks[day == 5], reference=train)
    stopping = lightgbm.early_stopping(5, verbose=False)
    model = lightgbm.train(parameters, train, 40, valid_sets=[validation], callbacks=[stopping])
    by_hand = model.predict(inputs[day == 6], raw_score=True, num_iteration=model.best_iteration)
    # float32 keeps seven digits.
    np.testing.assert_allclose(outputs(feed)[:, 0], by_hand, atol=1e-6)
    summary = json.loads((feed / "out/clips/trees/seed-0/summary.json").read_text(encoding="utf-8"))
    assert summary["tasks"]["click"]["trees"] == model.best_iteration


def test_rows_behind_a_mask_and_of_weight_zero_teach_nothing(feed: Path) -> None:
    data = {
        "path": str(feed / "data"),
        "split": {"column": "day", "train": {"max": 4}, "validation": 5, "test": [6]},
        "group_by": "user_id",
        "weight": "weight",
    }
    answers = []
    for flipped in (False, True):
        table = feed_table(ROWS)
        weight = (np.arange(ROWS) % 3 > 0).astype(np.float64)
        known = table.column("like_known").to_numpy()
        clicks, likes = table.column("is_click").to_numpy(), known * table.column("is_like").fill_null(0).to_numpy()
        in_training = table.column("day").to_numpy() <= 4
        if flipped:
            clicks = np.where(in_training & (weight == 0), 1 - clicks, clicks)
            likes = np.where(in_training & ~known, 1 - likes, likes)
        for name, values in (("is_click", clicks), ("is_like", likes.astype(np.int64))):
            table = table.set_column(table.schema.get_field_index(name), name, [values])
        for file in (feed / "data").glob("*.parquet"):
            file.unlink()
        pq.write_table(table.append_column("weight", [weight]), feed / "data" / "all.parquet")
        compare(load(file_of(feed, set={"data": data}, output=str(feed / f"out{flipped}")), {"seeds": 1}))
        kept = feed / f"out{flipped}/clips/trees/seed-0/predictions-validation.npz"
        answers.append(np.load(kept)["outputs_BO"])
    np.testing.assert_array_equal(answers[0][:, :2], answers[1][:, :2])


def test_task_of_one_class_is_a_constant_and_said_so(feed: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file in (feed / "data").glob("*.parquet"):
        table = pq.read_table(file)
        clicks = np.where(table.column("day").to_numpy() <= 4, 0, table.column("is_click").to_numpy())
        position = table.schema.get_field_index("is_click")
        pq.write_table(table.set_column(position, "is_click", [clicks]), file)
    compare(load(file_of(feed), {"seeds": 1}))
    assert "task click are all the same: a constant" in caplog.text
    rows = int((feed_table(ROWS).column("day").to_numpy() <= 4).sum())
    np.testing.assert_allclose(outputs(feed)[:, 0], np.log(0.5 / (rows + 0.5)), rtol=1e-6)
    # All rows are tied.
    assert results_of(feed)["datasets"]["clips"]["tables"]["test"]["auc"]["click"]["trees"]["values"]["0"] == 0.5


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "x"}, "give either fusion"),
        ({**TREES, "fusion": NETWORKS[0]["fusion"]}, "give either fusion"),
        ({**TREES, "tower": [8]}, "cross, tower, set and space are for networks"),
        (with_settings(leafs=3), "unknown key 'leafs'; did you mean 'leaves'"),
        (with_settings(encodings={"features": ["vidoe"]}), "unknown id feature 'vidoe'; did you mean 'video'"),
        (with_settings(encodings={"columns": ["is_click"]}), "'is_click' is a label or mask column"),
        (with_settings(encodings={"columns": ["video"]}), "'video' is a feature of the schema"),
    ],
)
def test_wrong_entries_are_refused_before_anything_runs(feed: Path, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the message is compared below, as plain text
        load(file_of(feed, entry), {}).configs()
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("encodings", "message"),
    [
        ({"columns": ["usr_idd"]}, "encodings.columns: unknown column 'usr_idd'; did you mean 'user_id'"),
        ({"order": "dya"}, "encodings.order: unknown column 'dya'; did you mean 'day'"),
        ({"order": "history"}, "has no order"),
    ],
)
def test_columns_that_do_not_serve_fail_the_cell_by_name(feed: Path, encodings: dict[str, Any], message: str) -> None:
    compare(load(file_of(feed, with_settings(encodings=encodings)), {"seeds": 1}))
    assert message in results_of(feed)["failures"]["clips/trees/seed-0"]


def test_changed_settings_and_broken_models_are_refused(feed: Path) -> None:
    compare(load(file_of(feed), {"seeds": 1}))
    with pytest.raises(ValueError, match=r"the experiment's clips/trees/seed-0 differs"):
        compare(load(file_of(feed, with_settings(leaves=7)), {"seeds": 1}))
    cell = feed / "out/clips/trees/seed-0"
    (cell / "predictions-test.npz").unlink()
    (cell / "trees-click.txt").write_text("tree\n", encoding="utf-8")
    compare(load(file_of(feed), {"seeds": 1}))
    assert "trees-click.txt: not a readable model" in results_of(feed)["failures"]["clips/trees/seed-0"]


def test_trees_alone_are_a_comparison(feed: Path) -> None:
    small = {**with_settings(leaves=4), "name": "small"}
    compare(load(experiment_file(feed, networks=[TREES, small], baseline="trees"), {"seeds": 1}))
    assert "the leaves of all tasks' models" in (feed / "out" / "results.md").read_text(encoding="utf-8")


def test_absent_package_is_named(feed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    compare(load(file_of(feed), {"seeds": 1}))
    assert "install requirements/train.txt" in results_of(feed)["failures"]["clips/trees/seed-0"]


def test_trees_and_networks_learn_the_tasks_that_are_named(feed: Path) -> None:
    experiment = load(file_of(feed, seeds=1, set={"epochs": 1, "tasks": ["watch", "click"]}), {})
    compare(experiment)
    assert not results_of(feed)["failures"]
    # The models do not know of each other: click's answers are those that it has among all tasks.
    alone = outputs(feed)
    assert alone.shape[1] == 2
    compare(load(file_of(feed, seeds=1, output=str(feed / "all")), {}))
    all_tasks = np.load(feed / "all/clips/trees/seed-0/predictions-test.npz")["outputs_BO"]
    np.testing.assert_array_equal(alone[:, 1], all_tasks[:, 0])
