"""`make bench-census`: AdaTT-sp on Census-Income over 5 seeds, at 2 and at 5 epochs.

    FEEDRANK_DATA=<folder with census_income_kdd> python -m benchmarks.census_quality

UCI's train file trains. The test file is halved by a fixed permutation into validation and test. One Adam (4e-3,
cosine), batch 512, equal weights.
"""

import argparse
import statistics
from pathlib import Path

from benchmarks import report
from benchmarks.command import data_folder, run_benchmark
from benchmarks.quality import evaluations, metric
from benchmarks.ratio import mean_and_half_width

CONFIG = Path("configs/census.yaml")
TASKS = ("income", "never_married", "education")
EPOCHS = (2, 5)


def main() -> None:
    """Train what is not trained yet, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    data_folder("census")
    rows, data = [], {}
    for epochs in EPOCHS:
        folder = Path(f"runs/bench-census-{epochs}-epochs")
        results = evaluations(CONFIG, [f"epochs={epochs}"], range(options.seeds), folder, replicates=0)
        aucs = {task: metric(results, task, "auc") for task in TASKS}
        means = [statistics.fmean(seed) for seed in zip(*aucs.values(), strict=True)]
        mean, half_width = mean_and_half_width(means)
        cells = [f"{statistics.fmean(values):.4f}" for values in aucs.values()]
        rows.append([str(epochs), *cells, f"{mean:.4f} ± {half_width:.4f}"])
        data[f"{epochs}_epochs"] = {"auc": aucs, "mean_auc": means, "mean": mean, "half_width": half_width}
    body = [
        f"AdaTT-sp (2 experts per task, levels 128 and 64, towers 32), {options.seeds} seeds. Test AUC, mean over "
        "seeds, for the mean AUC with its 95 % interval over seeds.",
        "",
        *report.table(["epochs", *TASKS, "mean AUC"], rows),
    ]
    path = report.write("census_quality", "Census-Income: AdaTT-sp", body, data, "make bench-census")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_benchmark(main)
