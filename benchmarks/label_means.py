"""`make bench-label-means`: from the mean of logarithms to the mean in the label's unit, by several estimates.

FEEDRANK_DATA=<folder with kuairand_pure> python -m benchmarks.label_means

play_time of KuaiRand-Pure and of the simulated feed, learned as log1p. Every estimate is fitted on the validation split
and measured there by cross-fitting over users, which is what chose the one that export has
(training/evaluate/label_means.py). Then the test day is read once, with that one.

Shapes: N rows of a split, E points of a map, B rows.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from benchmarks import readings, report
from benchmarks.command import data_folder, run_benchmark
from model.tasks import RegressionTask
from training.config import TrainingConfig
from training.data.rows import labels_of, observed_of, read_splits
from training.datasets.simulate import simulate
from training.evaluate.evaluate import evaluate, groups_of
from training.evaluate.label_means import logits_of
from training.run.run import Run
from training.tasks import learned
from training.tasks.label_mean_map import FOLDS, fit_label_mean
from training.train import train

TASK = "play_time"
FEEDS = {"KuaiRand-Pure": Path("configs/kuairand.yaml"), "simulated": Path("configs/simulated.yaml")}
RUNS = Path("runs/bench-label-means")
REPEATS = 10

Array = NDArray[np.float64]
Mean = Callable[[Array], Array]


def factor(labels_N: Array, answers_N: Array) -> Mean:
    """One factor that makes the sums equal."""
    ratio = labels_N.sum() / answers_N.sum()
    return lambda answers: ratio * answers


def smearing(labels_N: Array, answers_N: Array) -> Mean:
    """Duan 1983: the mean of the inverse over the residuals of the logarithm."""
    spread = np.mean(np.exp(np.log1p(labels_N) - np.log1p(answers_N)))
    return lambda answers: (1 + answers) * spread - 1


def power(labels_N: Array, answers_N: Array) -> Mean:
    """exp(a + b log1p(answer)): a Poisson regression with a logarithmic link, by Newton's method."""
    inputs_N2 = np.stack([np.ones_like(answers_N), np.log1p(answers_N)], axis=1)
    weights_2 = np.array([np.log(labels_N.sum() / (1 + answers_N).sum()), 1.0])
    for _ in range(50):
        mean_N = np.exp(inputs_N2 @ weights_2)
        curvature_22 = (inputs_N2 * mean_N[:, None]).T @ inputs_N2
        weights_2 = weights_2 + np.linalg.solve(curvature_22, inputs_N2.T @ (labels_N - mean_N))
    intercept, slope = weights_2
    return lambda answers: np.exp(intercept + slope * np.log1p(answers))


def isotonic(labels_N: Array, answers_N: Array) -> Mean:
    """Isotonic regression of the labels themselves, interpolated."""
    order = np.argsort(answers_N, kind="stable")
    starts = isotonic_regression(labels_N[order]).blocks[:-1]
    rows_E = np.diff(np.append(starts, len(order)))
    inputs_E = np.add.reduceat(answers_N[order], starts) / rows_E
    outputs_E = np.add.reduceat(labels_N[order], starts) / rows_E
    return lambda answers: np.interp(answers, inputs_E, outputs_E)


METHODS: dict[str, Callable[[Array, Array], Mean]] = {
    "bare inverse (expm1)": lambda labels_N, answers_N: lambda answers: answers,
    "Duan's smearing": smearing,
    "one factor": factor,
    "Poisson regression on the logarithm": power,
    "isotonic regression": isotonic,
    "isotonic regression of bins (export's)": lambda labels_N, answers_N: fit_label_mean(labels_N, answers_N, 1e30),
}


def held_out(method: str, labels_N: Array, answers_N: Array, users_N: NDArray[Any]) -> dict[str, float]:
    """Calibration ratio, MSE over the labels' variance and mean error of ten parts by answer.

    Of rows whose user took no part in the fit. Means are over REPEATS divisions of the users."""
    _, user_N = np.unique(users_N, return_inverse=True)
    measured = []
    for repeat in range(REPEATS):
        fold_N = np.random.default_rng(repeat).permutation(user_N.max() + 1)[user_N] % FOLDS
        means_N = np.empty_like(answers_N)
        for fold in range(FOLDS):
            fitted = METHODS[method](labels_N[fold_N != fold], answers_N[fold_N != fold])
            means_N[fold_N == fold] = fitted(answers_N[fold_N == fold])
        parts = np.array_split(np.argsort(answers_N, kind="stable"), 10)
        errors = [abs(means_N[part].mean() - labels_N[part].mean()) for part in parts]
        measured.append(
            {
                "calibration_ratio": float(means_N.sum() / labels_N.sum()),
                "mse_over_variance": float(np.mean((means_N - labels_N) ** 2) / labels_N.var()),
                "decile_error": float(np.mean(errors) / labels_N.mean()),
            }
        )
    return {name: float(np.mean([one[name] for one in measured])) for name in measured[0]}


def on_validation(run: Run) -> dict[str, Any]:
    """Every estimate on the validation split."""
    table = read_splits(run.config.data, run.schema, ("validation",))["validation"]
    position = [task.name for task in run.schema.tasks].index(TASK)
    task = run.schema.tasks[position]
    assert isinstance(task, RegressionTask)
    known_B = observed_of(task, table)
    logits_B = logits_of(run, run.best_ranker(), table, as_served=False)[:, position]
    labels_N = labels_of(task, table)[known_B]
    answers_N = learned(task, run.fitted.targets).bare_answers(logits_B[known_B, None])
    users_N = groups_of(run, table)[known_B]
    return {
        "rows": len(labels_N),
        "bare_ratio": float(answers_N.sum() / labels_N.sum()),
        "upper": run.fitted.targets[TASK].upper,
        "methods": {method: held_out(method, labels_N, answers_N, users_N) for method in METHODS},
    }


def main() -> None:
    """Train what is not trained yet, print and write the tables."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    data_folder("kuairand")
    if not Path("data/simulated").exists():
        simulate(200_000, 1, Path("data/simulated"))
    found: dict[str, Any] = {}
    body = [
        f"{TASK} is learned as log1p. Its mean in the label's unit by several estimates, each fitted on the validation "
        f"split and measured on users who took no part in the fit ({FOLDS} folds, mean over {REPEATS} divisions). "
        "Calibration: sum predicted over sum observed. MSE: over the variance of the labels. Error of tenths: mean "
        "difference between predicted and observed mean in ten parts by answer, over the mean. One seed, one thread."
    ]
    for feed, config in FEEDS.items():
        run = train(TrainingConfig.load(config, [f"output={RUNS / config.stem}"]), show=False)
        validation = on_validation(run)
        tests = evaluate(run, "test", replicates=1000)
        found[feed] = {"validation": validation, "test": tests}
        body += ["", f"## {feed}: validation, {validation['rows']:,} rows", "", *_methods(validation["methods"])]
        body += ["", f"## {feed}: the test day, {tests['rows']:,} rows, read once", "", *_test(tests["tasks"])]
    readings.note("label_means", readings.KUAIRAND_DAY)
    path = report.write("label_means", "Means in the label's unit", body, found, "make bench-label-means")
    print(path.read_text(encoding="utf-8"))


def _methods(methods: dict[str, dict[str, float]]) -> list[str]:
    rows = [[name, *(f"{value:.4f}" for value in measured.values())] for name, measured in methods.items()]
    return report.table(["estimate", "calibration", "MSE", "error of tenths"], rows)


def _test(tasks: dict[str, Any]) -> list[str]:
    rows = []
    for name, task in tasks.items():
        rows.append([name, "" if task["kind"] == "binary" else "label's unit", _shown(task["calibration_ratio"]), ""])
        if task["kind"] == "regression":
            rows[-1][3] = _shown(task["mse"])
            rows.append([name, "log1p", _shown(task["log1p"]["calibration_ratio"]), _shown(task["log1p"]["mse"])])
    return report.table(["task", "scale", "calibration (95 % over users)", "MSE"], rows)


def _shown(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.4g} ({estimate['low']:.4g}..{estimate['high']:.4g})"


if __name__ == "__main__":
    run_benchmark(main)
