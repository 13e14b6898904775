"""A comparison of networks and trees on tasks of several classes, against scikit-learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.special import softmax
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from tests.training.compare.test_compare_run import NETWORKS, experiment_file, results_of
from tests.training.tasks.rated_feed import RATED, rated_log
from training.compare.runner import compare, load

ENCODED = {
    "trees": 30,
    "early_stopping": 5,
    "min_rows_per_leaf": 10,
    "encodings": {"features": ["video"], "smoothing": 5},
}
TREES: dict[str, Any] = {"name": "trees", "lightgbm": ENCODED}
METRICS = ["accuracy", "log_loss", "macro_auc", "normalized_entropy"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    rated_log(folder / "data")
    verdict = {"metric": "log_loss", "tasks": ["rating"]}
    file = experiment_file(folder, schema=RATED, networks=[NETWORKS[0], TREES], metrics=METRICS, verdict=verdict)
    compare(load(file, {}))
    return folder


@pytest.mark.parametrize("network", ["bottom", "trees"])
def test_metrics_are_scikit_learn_s(compared: Path, network: str) -> None:
    results = results_of(compared)
    assert not results["failures"]
    dataset = results["datasets"]["clips"]
    tables = dataset["tables"]["test"]
    outputs = np.load(compared / f"out/clips/{network}/seed-1/predictions-test.npz")["outputs_BO"]
    rows = pq.read_table(compared / "data" / "log.parquet", columns=["day", "stars", "is_rated", "mood"]).to_pylist()
    rows = [row for row in rows if row["day"] == 6]
    is_rated = np.array([row["is_rated"] for row in rows])
    stars = np.array([row["stars"] or 0 for row in rows])[is_rated]
    probabilities = softmax(outputs[is_rated, 3:6].astype(np.float64), axis=1)
    expected = {
        "accuracy": accuracy_score(stars, 1 + probabilities.argmax(axis=1)),
        "log_loss": log_loss(stars, probabilities),
        "macro_auc": roc_auc_score(stars, probabilities, multi_class="ovr", average="macro"),
    }
    for metric, value in expected.items():
        found = tables[metric]["rating"][network]
        # Both sum in float64.
        assert found["values"]["1"] == pytest.approx(value, abs=1e-9), metric
        assert found["users_low"] < found["users_high"]
    shares = np.bincount(stars)[1:] / len(stars)
    entropy = tables["normalized_entropy"]["rating"][network]["values"]["1"]
    assert entropy == pytest.approx(expected["log_loss"] / -(shares * np.log(shares)).sum(), abs=1e-9)
    moods = np.array([row["mood"] for row in rows])
    loud = softmax(outputs[:, 6:8].astype(np.float64), axis=1)
    assert tables["log_loss"]["mood"][network]["values"]["1"] == pytest.approx(log_loss(moods, loud), abs=1e-9)
    counts = dataset["splits"]["test"]["tasks"]["rating"]
    assert counts == {"kind": "multiclass", "rows": len(stars), "rarest_class": int(np.bincount(stars)[1:].min())}
    assert set(dataset["verdicts"]) == {"trees"}
    # Of accuracy the mean is over binary tasks and those of classes.
    of_tasks = [tables["accuracy"][task][network]["values"]["1"] for task in ("click", "like", "rating", "mood")]
    assert tables["accuracy"]["mean"][network]["values"]["1"] == pytest.approx(np.mean(of_tasks))


def test_a_constant_answers_where_one_class_is_all_that_training_has(tmp_path: Path) -> None:
    rated_log(tmp_path / "data", 900)
    table = pq.read_table(tmp_path / "data" / "log.parquet")
    day, stars = (table.column(name).to_numpy() for name in ("day", "stars"))
    rated = table.column("is_rated").to_numpy() & ((day > 4) | (stars == 2))
    index = table.column_names.index("is_rated")
    pq.write_table(table.set_column(index, "is_rated", [rated]), tmp_path / "data" / "log.parquet")
    file = experiment_file(
        tmp_path, schema=RATED, networks=[TREES], metrics=["log_loss"], baseline="trees", seeds=1,
        verdict={"metric": "log_loss"},
    )  # fmt: skip
    compare(load(file, {}))
    outputs = np.load(tmp_path / "out/clips/trees/seed-0/predictions-test.npz")["outputs_BO"]
    fair = int(rated[day <= 4].sum())
    expected = np.log(np.array([0.5, fair + 0.5, 0.5]) / (fair + 1.5))
    np.testing.assert_allclose(outputs[:, 3:6], np.tile(expected, (len(outputs), 1)), rtol=1e-6)  # of float32
