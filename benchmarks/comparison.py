"""`make bench-compare EXPERIMENT=FILE`: runs an experiment of `training compare` and keeps its results here.

    python -m benchmarks.comparison configs/experiments/census_table5.yaml [--output DIR] [--processes N]
        [--picture NAME ...]

Finished cells are kept. results/<name>.md and .json then say with which command, at which commit and on which machine.
Of the report's pictures those named are kept, in results/<name>/.
"""

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks import readings, report
from benchmarks.command import run_benchmark
from training.compare.document import MARKDOWN, PICTURES
from training.compare.report import RESULTS
from training.compare.runner import compare, load


def main() -> None:
    """Run what is left of the experiment and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--output", type=Path, help="folder of the trained cells (default: the experiment's)")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--picture", action="append", default=[], help=f"a file of the report's {PICTURES}/ to keep")
    options = parser.parse_args()
    given = {"output": options.output, "processes": options.processes, "seeds": options.seeds}
    experiment = load(options.experiment, {key: value for key, value in given.items() if value is not None})
    folder = compare(experiment).parent
    for day in {readings.day_of_test(config.data) for config in experiment.configs().values()}:
        readings.note(experiment.name, day)
    title, *body = (folder / MARKDOWN).read_text(encoding="utf-8").splitlines()
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    for dataset in results["datasets"].values():
        if dataset["inside"] is not None:
            # Every seed's routing policies: megabytes that the pictures show.
            dataset["inside"].pop("policies")
    body = keep_pictures(body[1:], folder / PICTURES, experiment.name, options.picture)
    command = f"make bench-compare EXPERIMENT={options.experiment}"
    if options.picture:
        command += f' ARGS="{" ".join(f"--picture {name}" for name in options.picture)}"'
    print(report.write(experiment.name, title.removeprefix("# "), body, results, command, is_compact=True))


def keep_pictures(body: Sequence[str], source: Path, name: str, wanted: Sequence[str]) -> list[str]:
    """Copy the wanted pictures to results/<name>/ and return the lines with links to them alone. Raises SystemExit
    where one is not in the report."""
    target = report.RESULTS / name
    shutil.rmtree(target, ignore_errors=True)
    kept: list[str] = []
    left = set(wanted)
    for line in body:
        link = re.fullmatch(rf"!\[(.*)\]\({PICTURES}/(.*)\)", line)
        if link is None:
            kept.append(line)
        elif link[2] in wanted:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / link[2], target / link[2])
            kept.append(f"![{link[1]}]({name}/{link[2]})")
            left.discard(link[2])
    if left:
        raise SystemExit(f"no picture {min(left)} in {source}")
    # Without its picture a line leaves an empty one behind.
    return [line for number, line in enumerate(kept) if line or not number or kept[number - 1]]


if __name__ == "__main__":
    run_benchmark(main)
