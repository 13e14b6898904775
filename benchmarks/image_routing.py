"""`make bench-images EXPERIMENT=FILE`: runs an experiment of `training images` and keeps its results here.

    python -m benchmarks.image_routing configs/images/fashion_mnist_cpu.yaml [--data DIR] [--output DIR]

Finished epochs are kept: the same command goes on after any kill. results/<name>.md and .json then say with which
command, at which commit and on which machine. Figures are kept in results/<name>/.
"""

import argparse
import json
from pathlib import Path

from benchmarks import report
from benchmarks.command import run_benchmark
from benchmarks.comparison import keep_pictures
from training.compare.document import MARKDOWN, PICTURES
from training.images.experiment import load, run
from training.images.report import RESULTS

# Of Debian's package dataset-fashion-mnist.
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def main() -> None:
    """Run what is left of the experiment and write its results."""
    parser = argparse.ArgumentParser(prog="make bench-images", description=__doc__)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--data", type=Path, help="folder of the published files (default: the file's, or Debian's)")
    parser.add_argument("--output", type=Path, help="folder of the trained cells (default: the experiment's)")
    options = parser.parse_args()
    experiment = load(options.experiment, {} if options.output is None else {"output": str(options.output)})
    folder = options.data or experiment.data.path
    if experiment.data.kind == "fashion_mnist" and not folder.exists() and options.data is None:
        folder = FASHION_MNIST
    data = experiment.data.model_copy(update={"path": folder})
    output = run(experiment.model_copy(update={"data": data})).parent
    title, *body = (output / MARKDOWN).read_text(encoding="utf-8").splitlines()
    results = json.loads((output / RESULTS).read_text(encoding="utf-8"))
    results["settings"]["data"]["path"] = str(experiment.data.path)
    pictures = sorted(path.name for path in (output / PICTURES).glob("*.png"))
    body = keep_pictures(body[1:], output / PICTURES, experiment.name, pictures)
    command = f"make bench-images EXPERIMENT={options.experiment}"
    print(report.write(experiment.name, title.removeprefix("# "), body, results, command, is_compact=True))


if __name__ == "__main__":
    run_benchmark(main)
