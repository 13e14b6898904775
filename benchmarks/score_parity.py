"""`make bench-parity`: what is served against what training measured, on logged rows of KuaiRand-Pure.

    FEEDRANK_DATA=<folder with kuairand_pure> python -m benchmarks.score_parity [--run DIR] [--rows 10000]

In: a finished run (default: configs/kuairand.yaml is trained for one epoch). It is exported and compiled as a user
would. Then rows of the test day are answered as served: each user in a context is one request with the candidates that
were shown there, as JSON values. They are compared with training's own evaluation of the same rows (TorchRec's tables,
the trained network), answers one by one, NE and AUC by task. An answer above 1, a play time, is compared relatively.

Shapes: B rows, O outputs, T tasks.
"""

import argparse
import json
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import spearmanr

from benchmarks import readings, report
from benchmarks.command import data_folder, run_benchmark
from model.artifact.artifact import CALIBRATION, MANIFEST
from model.calibration import AnswerMaps, Calibration
from model.scorer.scorer import COMPILED_TOLERANCE, Engine, Scorer
from model.tasks import BinaryTask, RegressionTask
from training.config import TrainingConfig
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows, labels_of, observed_of, read_splits
from training.evaluate.evaluate import groups_of
from training.evaluate.validation import predict
from training.metrics.metrics import auc, normalized_entropy
from training.publish.compile import compile_version
from training.publish.export import export
from training.run.run import Run
from training.train import train

CONFIG = Path("configs/kuairand.yaml")
LIMITS = {"torchscript": 1e-5, "compiled": COMPILED_TOLERANCE}
METRIC_LIMIT = 1e-4


def answers_of_training(run: Run, table: pa.Table, maps: AnswerMaps) -> NDArray[np.float64]:
    """Training's evaluation of the rows, as served, in each task's own unit. It is float64 from its logits on.
    Quantities are mapped to their labels' means as the version has them."""
    rows = Rows.encode(run.schema, run.encoder, table, columns_from_arrow(run.schema, table), as_served=True)
    logits_BT = predict(run.best_ranker(), rows).astype(np.float64)
    answers = []
    for task, logits_B in zip(run.schema.tasks, logits_BT.T, strict=True):
        if isinstance(task, BinaryTask):
            answers.append(expit(logits_B + np.log(task.negative_sampling_rate)))
            continue
        assert isinstance(task, RegressionTask), "the feeds of this benchmark have no other"
        scale = run.fitted.targets[task.name]
        values_B = logits_B * scale.scale + scale.mean
        answers.append(np.clip(task.inverse(values_B), 0.0, scale.upper))
    answers_BO = np.stack(answers, axis=1)
    for columns, mapping in maps:
        answers_BO[:, columns] = mapping(answers_BO[:, columns])
    return answers_BO


def answers_as_served(scorer: Scorer, table: pa.Table) -> tuple[NDArray[np.float32], list[int]]:
    """A scorer's answers to the rows, in their order, and how many candidates each request had."""
    asked = {side: [feature.name for feature in scorer.schema.requested(side)] for side in ("request", "candidate")}
    rows = table.to_pylist()
    users = [{name: row[name] for name in asked["request"]} for row in rows]
    order = sorted(range(len(rows)), key=lambda row: repr(users[row]))
    answers_BT = np.empty((len(rows), len(scorer.outputs)), np.float32)
    sizes = []
    for _, shown in groupby(order, key=lambda row: repr(users[row])):
        positions = list(shown)
        features = {name: [rows[row][name] for row in positions] for name in asked["candidate"]}
        answers_BT[positions] = scorer.score_values(users[positions[0]], features, len(positions))
        sizes.append(len(positions))
    return answers_BT, sizes


def metrics(run: Run, table: pa.Table, answers_BT: NDArray[Any]) -> dict[str, dict[str, float | None]]:
    """By task NE and AUC, or RMSE (on the task's own scale, log1p where it has that) and Spearman correlation."""
    found: dict[str, dict[str, float | None]] = {}
    for task, answers_B in zip(run.schema.tasks, answers_BT.T.astype(np.float64), strict=True):
        observed_B = observed_of(task, table)
        labels, answers = labels_of(task, table)[observed_B], answers_B[observed_B]
        if isinstance(task, BinaryTask):
            found[task.name] = {"NE": normalized_entropy(labels, answers), "AUC": auc(labels, answers)}
        else:
            if isinstance(task, RegressionTask) and task.transform == "log1p":
                labels, answers = np.log1p(labels), np.log1p(answers)
            rmse, spearman = np.sqrt(np.mean((answers - labels) ** 2)), spearmanr(labels, answers).statistic
            found[task.name] = {"RMSE": float(rmse), "Spearman": float(spearman)}
    return found


def compare(run: Run, version: Path, table: pa.Table) -> dict[str, Any]:
    """Largest difference and metrics of every path, against training's."""
    content = json.loads((version / CALIBRATION).read_text(encoding="utf-8"))
    maps = Calibration.from_mapping(content, str(version / CALIBRATION)).bound(run.schema)
    expected_BT = answers_of_training(run, table, maps)
    tasks = [task.name for task in run.schema.tasks]
    result: dict[str, Any] = {"rows": table.num_rows, "training": metrics(run, table, expected_BT), "paths": {}}
    engines: tuple[Engine, ...] = ("torchscript", "compiled")
    for engine in engines:
        answers_BT, sizes = answers_as_served(Scorer.load(version, engine), table)
        error_BT = np.abs(answers_BT - expected_BT) / np.maximum(1.0, np.abs(expected_BT))
        measured = metrics(run, table, answers_BT)
        result["paths"][engine] = {
            "largest_difference": dict(zip(tasks, error_BT.max(axis=0).tolist(), strict=True)),
            "metrics": measured,
            "metric_difference": max(
                abs(value - result["training"][task][name])
                for task, values in measured.items()
                for name, value in values.items()
                if value is not None
            ),
        }
        result["requests"], result["largest_request"] = len(sizes), max(sizes)
    return result


def _of_some_users(run: Run, rows: int) -> pa.Table:
    """About `rows` impressions of the test day: all of every k-th user."""
    table = read_splits(run.config.data, run.schema, ("test",))["test"]
    every = max(1, table.num_rows // rows)
    return table.filter(pa.array(groups_of(run, table) % every == 0)).slice(0, rows)


def _run(folder: Path) -> Run:
    data_folder("kuairand")
    return train(TrainingConfig.load(CONFIG, ["epochs=1", f"output={folder / 'run'}"]), show=False)


def main() -> None:
    """Compare, print and write the tables. Ends with status 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a finished run; default: one epoch is trained")
    parser.add_argument("--rows", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="feedrank-bench-") as temporary:
        folder = Path(temporary)
        run = Run.open(options.run) if options.run else _run(folder)
        torch.set_num_threads(1)
        version = export(run, folder / "models")
        manifest = json.loads((compile_version(version) / MANIFEST).read_text(encoding="utf-8"))
        data = compare(run, version, _of_some_users(run, options.rows))
    rows = []
    for engine, found in data["paths"].items():
        worst = max(found["largest_difference"], key=found["largest_difference"].__getitem__)
        largest = found["largest_difference"][worst]
        is_kept = largest <= LIMITS[engine] and found["metric_difference"] <= METRIC_LIMIT
        cells = [f"{largest:.1e} ({worst})", f"{LIMITS[engine]:.0e}", f"{found['metric_difference']:.1e}"]
        rows.append([engine, *cells, f"{METRIC_LIMIT:.0e}", "yes" if is_kept else "NO"])
    columns = [data["training"], *(found["metrics"] for found in data["paths"].values())]
    tasks = [
        [task, name, *(f"{column[task][name]:.6f}" for column in columns)]
        for task, values in data["training"].items()
        for name in values
    ]
    body = [
        f"{data['rows']:,} impressions of 7 May, as {data['requests']:,} requests of 1 to "
        f"{data['largest_request']} candidates, against training's own evaluation of the same rows. "
        f"The compiled package computes in {manifest['dtype']}.",
        "",
        *report.table(["engine", "largest difference of an answer", "limit", "of a metric", "limit", "kept"], rows),
        "",
        *report.table(["task", "metric", "training", *data["paths"]], tasks),
    ]
    print("\n".join(body))
    readings.note("score_parity", readings.KUAIRAND_DAY)
    print(report.write("score_parity", "Scores as served against training's", body, data, "make bench-parity"))
    raise SystemExit(any(row[-1] == "NO" for row in rows))


if __name__ == "__main__":
    run_benchmark(main)
