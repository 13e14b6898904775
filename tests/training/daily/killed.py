"""`python -m tests.training.daily.killed FOLDER NIGHT KILLS SEED`: a night that is killed at random moments, then ends.

In: a folder of a feed with days (nights.py), or with logs (joined_nights.py). Out, as JSON: how many kills hit, and
where, and the CPU seconds that a night takes that is left alone, measured in a copy of the folder. Moments are told by
CPU time, so that a busy machine does not move them. Each try is a fork of this process, which has imported everything
and run nothing, so that a try begins at once. The first kill is anywhere in the night. Those after it hit soon after
the night has begun again, wherever it then is.
"""

import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import psutil

from tests.training.daily.joined_nights import JoinedFeed
from tests.training.daily.nights import Feed
from training.daily import cycle  # noqa: F401 - all that a night imports, before any fork

# A night takes seconds: only one that hangs is ended.
LONGEST_SECONDS = 3600.0


def main() -> None:
    """Kill, run on to the end, print what was seen."""
    folder, night, kills, seed = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    kind = JoinedFeed if (folder / "join.yaml").is_file() else Feed
    alone = kind(Path(shutil.copytree(folder, folder.with_name(f"{folder.name}-alone"))))
    for file in alone.folder.glob("*.yaml"):
        file.write_text(file.read_text().replace(f"{folder}/", f"{alone.folder}/"))
    status, seconds = _try(alone, night, None)
    assert status == 0, status
    draw, feed = random.Random(seed), kind(folder)
    hits: Counter[str] = Counter()
    while hits.total() < kills:
        # What was done stays done, so that less and less of the night is left.
        status, _ = _try(feed, night, draw.uniform(0.0, 2 * seconds / kills if hits else seconds))
        if status == 0:  # it was done before it could be killed: nothing is left to kill
            break
        assert os.WIFSIGNALED(status), status
        hits[feed.place()] += 1
    for _ in range(2):  # to the end, and once more
        status, _ = _try(feed, night, None)
        assert status == 0, status
    print(json.dumps({"kills": hits, "seconds": seconds}))


def _try(feed: Feed, night: int, seconds: float | None) -> tuple[int, float]:
    """Run the night in a fork, killed after so many CPU seconds. Returns its wait status and its CPU seconds."""
    child = os.fork()
    if child == 0:
        try:
            feed.run_night(night)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    process = psutil.Process(child)
    hangs_at = time.monotonic() + LONGEST_SECONDS
    is_killed = False
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            return status, usage.ru_utime + usage.ru_stime
        spent = sum(process.cpu_times()[:2])
        if not is_killed and ((seconds is not None and spent > seconds) or time.monotonic() > hangs_at):
            joins = process.children()
            process.kill()
            is_killed = True
            while not all(map(has_ended, joins)):  # which they do with it, a moment later
                time.sleep(0.005)
        time.sleep(0.005)


def has_ended(process: psutil.Process) -> bool:
    """True for a process that is gone, whether somebody has asked for its status or not."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


if __name__ == "__main__":
    main()
