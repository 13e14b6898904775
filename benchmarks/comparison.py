"""`make bench-compare EXPERIMENT=FILE`: runs an experiment of `training compare` and keeps its results here.

    python -m benchmarks.comparison configs/experiments/census_table5.yaml [--output DIR] [--processes N]

Finished cells are kept; results/<name>.md and .json then say with which command, at which commit and on which machine.
"""

import argparse
import json
from pathlib import Path

from benchmarks import report
from training.compare.report import MARKDOWN, RESULTS
from training.compare.runner import compare, load


def main() -> None:
    """Runs what is left of the experiment and writes its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--output", type=Path, help="folder of the trained cells (default: the experiment's)")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--seeds", type=int)
    options = parser.parse_args()
    given = {"output": options.output, "processes": options.processes, "seeds": options.seeds}
    experiment = load(options.experiment, {key: value for key, value in given.items() if value is not None})
    folder = compare(experiment).parent
    title, *body = (folder / MARKDOWN).read_text(encoding="utf-8").splitlines()
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    command = f"make bench-compare EXPERIMENT={options.experiment}"
    print(report.write(experiment.name, title.removeprefix("# "), body[1:], results, command))


if __name__ == "__main__":
    main()
