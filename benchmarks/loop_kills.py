"""`make bench-loop-kills`: kill -9 at random moments of nights of the daily cycle. Each ends as one left alone.

    python -m benchmarks.loop_kills [--kills 100] [--seed 0]

A small feed goes on, a day a night. Every night is killed ten times, at moments drawn evenly from the time that it
takes, then it is run to its end, and once more. A copy of its folder has the same night left alone. Both must have the
same labels, the same decisions in the same order, and the same bytes of every version.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.command import run_benchmark
from model.artifact.artifact import Artifact
from model.rollout.decisions import DAILY
from tests.training.daily.nights import Feed, as_is, inverted

FIRST, OF_A_NIGHT, BAD = 3, 10, 5


def main() -> None:
    """Kill, compare, write what was seen. Raises RuntimeError where a killed night ended otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kills: Counter[str] = Counter()
    nights = 0
    with tempfile.TemporaryDirectory() as name:
        feed = Feed(Path(name) / "feed")
        feed.folder.mkdir()
        feed.write_files(publish={"label": "shadow"})
        for number in range(FIRST):
            feed.write_day(number)
        while kills.total() < options.kills:
            number = FIRST + nights
            feed.write_day(number, inverted if number == BAD else as_is)
            kills += _killed(feed, number, options.seed + nights)
            nights += 1
            print(f"night {nights}: {kills.total()} kills", flush=True)
        versions = len(feed.versions())
    body = [
        f"{kills.total()} kills in {nights} nights, which published {versions} versions and quarantined 1 day. Labels, "
        "decisions and every byte of every version are those of the same nights left alone. By the last entry of the "
        f"journal when they hit: {', '.join(f'{step} {count}' for step, count in kills.most_common())}."
    ]
    data = {"kills": dict(kills), "nights": nights, "versions": versions}
    title = "kill -9 at random moments of the daily cycle"
    path = report.write("loop_kills", title, body, data, "make bench-loop-kills")
    print(path.read_text(encoding="utf-8"))


def _killed(feed: Feed, number: int, seed: int) -> Counter[str]:
    """Kill one night, compare it with the one left alone, and return the kills by the journal's last entry."""
    command = [sys.executable, "-m", "tests.training.daily.killed"]
    arguments = [str(feed.folder), str(number), str(OF_A_NIGHT), str(seed)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"night {number}: {done.stderr}")
    alone = Feed(feed.folder.with_name(f"{feed.folder.name}-alone"))
    if _ended(feed) != _ended(alone):
        raise RuntimeError(f"night {number}: ended otherwise than the one left alone")
    shutil.rmtree(alone.folder)
    return Counter(json.loads(done.stdout.splitlines()[-1])["kills"])


def _ended(feed: Feed) -> dict[str, Any]:
    return {
        "labels": feed.labels,
        "decisions": [(e.step, e.decision, e.figures.get("day")) for e in feed.entries if e.step != DAILY],
        "versions": {number: Artifact.open(feed.models / str(number)).manifest.files for number in feed.versions()},
    }


if __name__ == "__main__":
    run_benchmark(main)
