"""`make bench-loop-kills`: kill -9 at random moments of nights of the whole loop. Each ends as one left alone.

    python -m benchmarks.loop_kills [--kills 100] [--seed 0]

A small feed goes on, a day a night, by both logs. Every night joins, judges the canary, runs the cycle with gates,
recalibration, training, export and labels, and forgets a user. It is killed up to ten times, at moments drawn from the
CPU time that it takes, then it is run to its end, and once more. A copy of its folder has the same night left alone.
Both must have the same labels, the same decisions in the same order, and the same bytes of versions, calibrations,
joined rows, counts and logs.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks import report
from benchmarks.command import run_benchmark
from tests.training.daily.joined_nights import JoinedFeed

FIRST, OF_A_NIGHT, BAD = 3, 10, 7
# Days of fewer clicks, which have what serves calibrated again.
LOWER = (4, 5, 9)


def main() -> None:
    """Kill, compare, write what was seen. Raises RuntimeError where a killed night ended otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kills: Counter[str] = Counter()
    nights = 0
    with tempfile.TemporaryDirectory() as name:
        feed = JoinedFeed(Path(name) / "feed")
        feed.folder.mkdir()
        feed.write_files()
        for number in range(FIRST):
            feed.write_logs(number)
        while kills.total() < options.kills:
            number = FIRST + nights
            feed.write_logs(number, is_bad=number == BAD, is_lower=number in LOWER)
            kills += _killed(feed, number, options.seed + nights)
            nights += 1
            print(f"night {nights}: {kills.total()} kills", flush=True)
        versions = len(feed.versions())
        calibrations = len(list(feed.models.glob("derived/*/calibration/[0-9]*")))
        canaries = Counter(entry.decision for entry in feed.entries if entry.step == "judge")
        quarantined = len(feed.decisions.quarantined)
    ended = ", ".join(f"{count} {decision}" for decision, count in canaries.items() if decision != "wait")
    body = [
        f"{kills.total()} kills in {nights} nights. Those published {versions} versions and {calibrations} generations "
        f"of calibration, forgot {nights} users and quarantined {quarantined} day. Of the canaries: {ended}. Labels, "
        "decisions and every byte of versions, calibrations, joined rows, counts and logs are those of the same nights "
        "left alone.",
        "",
        "Where the kills hit, by the job that ran, and within the cycle by the last entry of the journal:",
        "",
        *report.table(("place", "kills"), [(place, str(count)) for place, count in kills.most_common()]),
    ]
    data = {"kills": dict(kills), "nights": nights, "versions": versions, "calibrations": calibrations}
    title = "kill -9 at random moments of the loop"
    path = report.write("loop_kills", title, body, data, "make bench-loop-kills")
    print(path.read_text(encoding="utf-8"))


def _killed(feed: JoinedFeed, number: int, seed: int) -> Counter[str]:
    """Kill one night, compare it with the one left alone, and return the kills by where they hit."""
    command = [sys.executable, "-m", "tests.training.daily.killed"]
    arguments = [str(feed.folder), str(number), str(OF_A_NIGHT), str(seed)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"night {number}: {done.stderr}")
    alone = JoinedFeed(feed.folder.with_name(f"{feed.folder.name}-alone"))
    own, other = feed.ended(), alone.ended()
    if differs := [key for key in {**own, **other} if own.get(key) != other.get(key)]:
        raise RuntimeError(f"night {number}: ended otherwise than the one left alone: {', '.join(differs)}")
    shutil.rmtree(alone.folder)
    return Counter(json.loads(done.stdout.splitlines()[-1])["kills"])


if __name__ == "__main__":
    run_benchmark(main)
