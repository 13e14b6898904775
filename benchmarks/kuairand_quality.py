"""`make bench-quality`: AdaTT-sp on KuaiRand-Pure over 3 seeds, tested on 7 May beside the reference figures.

FEEDRANK_DATA=<folder with kuairand_pure> python -m benchmarks.kuairand_quality
"""

import argparse
import statistics
from pathlib import Path

from benchmarks import readings, report
from benchmarks.command import data_folder, run_benchmark
from benchmarks.quality import evaluations, metric
from training.evaluate.evaluate import evaluate
from training.run.run import Run

CONFIG = Path("configs/kuairand.yaml")
# AUC on 7 May of two references on comparable inputs.
REFERENCES = {
    "click": (0.751, 0.755),
    "long_view": (0.749, 0.755),
    "like": (0.899, 0.895),
    "profile_enter": (0.738, 0.745),
    "comments_opened": (0.797, 0.804),
    "finished": (0.818, 0.834),
}
LOG_PLAY_RMSE = (1.703, 1.690)
LOG_PLAY_SPEARMAN = (0.542, 0.552)
METRICS = ("auc", "normalized_entropy", "gauc", "calibration_ratio")


def main() -> None:
    """Train what is not trained yet, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    data_folder("kuairand")
    results = evaluations(CONFIG, [], range(options.seeds), Path("runs/bench-kuairand"), replicates=1000)
    readings.note("kuairand_quality", readings.KUAIRAND_DAY)
    first = results[0]["evaluation"]["tasks"]
    rows = []
    for task, (regression, boosting) in REFERENCES.items():
        cells = []
        for name in METRICS:
            values = metric(results, task, name)
            cells.append(f"{statistics.fmean(values):.4f} {_interval(first[task][name])}")
        rows.append([task, *cells, f"{regression:.3f}", f"{boosting:.3f}"])
    rmse = metric(results, "play_time", "rmse", "log1p")
    spearman = metric(results, "play_time", "spearman", "log1p")
    play = first["play_time"]["log1p"]
    body = [
        f"AdaTT-sp, tasks learned together, {options.seeds} seeds, trained on days to 5 May, stopped on 6 May, tested "
        f"on 7 May ({results[0]['evaluation']['rows']:,} impressions). Mean over seeds, in brackets the 95 % interval "
        "of seed 0 from 1,000 bootstrap samples over users. References: logistic regression and LightGBM (one model a "
        "task) on encodings and history rates of the same days.",
        "",
        *report.table(["task", "AUC", "NE", "GAUC", "calibration", "LR AUC", "LightGBM AUC"], rows),
        "",
        f"play_time on log1p: RMSE {statistics.fmean(rmse):.3f} {_interval(play['rmse'])}, "
        f"Spearman {statistics.fmean(spearman):.3f} {_interval(play['spearman'])}, linear regression "
        f"{LOG_PLAY_RMSE[0]} / {LOG_PLAY_SPEARMAN[0]}, LightGBM {LOG_PLAY_RMSE[1]} / {LOG_PLAY_SPEARMAN[1]}.",
        "",
        _tab_1(Path("runs/bench-kuairand/seed-0")),
        "",
        "Best epochs by seed: " + ", ".join(str(result["best_epoch"]) for result in results) + ".",
    ]
    title = "KuaiRand-Pure, 7 May: AdaTT-sp"
    path = report.write("kuairand_quality", title, body, {"seeds": results}, "make bench-quality")
    print(path.read_text(encoding="utf-8"))


def _interval(estimate: dict[str, float]) -> str:
    return f"({estimate['low']:.3f}..{estimate['high']:.3f})"


def _tab_1(folder: Path) -> str:
    """The main screen alone: the screens differ so much that telling them apart makes up much of an AUC."""
    tasks = evaluate(Run.open(folder), "test", replicates=1000, where="tab=1")["tasks"]
    cells = []
    for task in REFERENCES:
        auc = tasks[task]["auc"]
        cells.append(f"{task} {auc['value']:.3f} {_interval(auc)}")
    return f"AUC within tab 1 (seed 0, {tasks['click']['rows']:,} rows): {', '.join(cells)}."


if __name__ == "__main__":
    run_benchmark(main)
