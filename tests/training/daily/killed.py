"""`python -m tests.training.daily.killed FOLDER NIGHT KILLS SEED`: a night that is killed at random moments, then ends.

In: a folder of a feed with days (nights.py), or with logs (joined_nights.py). Out, as JSON: how many kills hit, and
where, and the seconds that a night takes that is left alone, measured in a copy of the folder. Each try is a fork of
this process, which has imported everything and run nothing, so that a try begins at once.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

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
    started = time.monotonic()
    status = _try(alone, night, None)
    assert status == 0, status
    seconds = time.monotonic() - started
    draw, feed = random.Random(seed), kind(folder)
    hits: Counter[str] = Counter()
    while hits.total() < kills:
        # What was done stays done, so that less and less of the night is left.
        status = _try(feed, night, draw.uniform(0.0, seconds / (1 + hits.total() / 4)))
        if status == 0:  # it was done before it could be killed: nothing is left to kill
            break
        assert os.WIFSIGNALED(status), status
        hits[feed.place()] += 1
    for _ in range(2):  # to the end, and once more
        status = _try(feed, night, None)
        assert status == 0, status
    print(json.dumps({"kills": hits, "seconds": seconds}))


def _try(feed: Feed, night: int, seconds: float | None) -> int:
    """Run the night in a fork, killed after so many seconds. Returns its wait status."""
    child = os.fork()
    if child == 0:
        try:
            feed.run_night(night)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + (LONGEST_SECONDS if seconds is None else seconds)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        time.sleep(0.002)


if __name__ == "__main__":
    main()
