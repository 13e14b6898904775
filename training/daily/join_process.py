"""The join of a night in a process of its own: its memory is free again when training begins, which it never had.

In: a join.yaml, and the times of the run. Out: joined hours, or the reason why there are none. The process ends with
the one that began it, whatever ends that. A join that is killed is resumed by the next one.
"""

import ctypes
import logging
import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from training.join.join import Settings, join
from training.join.plan import Plan

# Linux: a signal for this process when its parent ends (prctl(2)).
_PR_SET_PDEATHSIG = 1
_REFUSED = 2


def join_apart(file: Path, now: datetime, until: datetime) -> None:
    """Join every hour that is closed, in a process of its own. Raises ValueError."""
    arguments = [str(os.getpid()), str(file), now.isoformat(), until.isoformat()]
    with subprocess.Popen(
        [sys.executable, "-m", "training.daily.join_process", *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            reason, _ = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode == _REFUSED:
        raise ValueError(reason)
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise ValueError(
            f"{file}: the join was ended by {name}; SIGKILL may mean that the machine has too little memory"
        )
    if process.returncode:
        raise ValueError(f"{file}: the join failed; its messages are above")


def main() -> int:
    """Join as the arguments say, and print why that is refused."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # at once: nothing is lost by it
    parent, file, now, until = sys.argv[1:]
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        return 1  # it ended before that
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("training").setLevel(logging.INFO)
    try:
        join(Plan.load(Path(file)), Settings(now=datetime.fromisoformat(now), until=datetime.fromisoformat(until)))
    except (ValueError, OSError) as error:
        print(error, end="")
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
