"""`make bench-rolling ROLLING=FILE`: a comparison on rolling days, and the reading of its test day.

    python -m benchmarks.rolling configs/rolling/kuairand.yaml
        [--frozen FROZEN] [--again WORDS] [--processes N]

Runs the trials that are left. With a frozen file it also trains what that says and reads the test day, once as the list
of readings has it. results/<name>.md and .json have both, the trials value by value.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from benchmarks import report
from benchmarks.command import run_benchmark
from training.compare.document import Block, Heading, to_markdown
from training.rolling.choice_report import choice_blocks
from training.rolling.choosing import choose
from training.rolling.reading import FOLDER, RESULTS, read
from training.rolling.reading_report import reading_blocks
from training.rolling.rolling_file import load_rolling
from training.run.run import read_json


def main() -> None:
    """Run what is left, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=Path("configs/rolling/kuairand.yaml"))
    parser.add_argument("--frozen", type=Path, help="the frozen file, to read the test day")
    parser.add_argument("--again", metavar="WORDS", help="why the test day is read a second time")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    file = load_rolling(options.file, {"processes": options.processes})
    trials = choose(file)
    blocks = list(choice_blocks(trials))
    data = {"trials": {name: trials.of(name) for name in file.method_names}}
    command = f"make bench-rolling ROLLING={options.file}"
    if options.frozen is not None:
        results = file.output / FOLDER / RESULTS
        if not results.exists() or options.again is not None:
            read(options.frozen, options.again, options.processes)
        data["reading"] = read_json(results)
        blocks += _below(reading_blocks(data["reading"]))
        command += f' ARGS="--frozen {options.frozen}"'
    title = blocks[0].text if isinstance(blocks[0], Heading) else file.name
    print(report.write(file.name, title, to_markdown(blocks[1:]).splitlines(), data, command, is_compact=True))


def _below(blocks: Iterator[Block]) -> Iterator[Block]:
    """Blocks of a report inside another one's: headings are one level lower."""
    for block in blocks:
        yield Heading(min(block.level + 1, 3), block.text) if isinstance(block, Heading) else block


if __name__ == "__main__":
    run_benchmark(main)
