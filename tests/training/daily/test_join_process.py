"""The join of a night in a process of its own: its refusals are the night's, and it ends with what began it."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from tests.deploy.programs import ROOT, wait_for
from tests.training.daily.joined_nights import HOURS, JoinedFeed
from tests.training.daily.killed import has_ended
from tests.training.daily.nights import night
from training.daily.join_process import join_apart
from training.join.join import locked

HOUR = timedelta(hours=1)
# Joins a file's hours apart, until the time that follows it.
PROGRAM = (
    "import sys\n"
    "from datetime import datetime\n"
    "from pathlib import Path\n"
    "from training.daily.join_process import join_apart\n"
    "now = datetime.fromisoformat(sys.argv[2])\n"
    "try:\n"
    "    join_apart(Path(sys.argv[1]), now, now)\n"
    "except ValueError as error:\n"
    "    print(error)\n"
)


@pytest.fixture
def feed(tmp_path: Path) -> JoinedFeed:
    feed = JoinedFeed(tmp_path / "feed")
    feed.folder.mkdir()
    feed.write_files()
    feed.write_logs(0)
    return feed


@contextmanager
def stopped_join(feed: JoinedFeed) -> Iterator[tuple["subprocess.Popen[str]", psutil.Process]]:
    """A process that joins apart, and that join's, which is stopped in the middle of its work."""
    command = [sys.executable, "-c", PROGRAM, str(feed.folder / "join.yaml"), night(0).isoformat()]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        try:
            wait_for((feed.folder / "data" / "_join" / ".lock").exists)
            (child,) = psutil.Process(parent.pid).children()
            child.suspend()
            yield parent, child
        finally:
            parent.kill()


def test_a_refusal_of_the_join_is_raised(feed: JoinedFeed) -> None:
    with (
        locked(feed.folder / "data"),
        pytest.raises(ValueError, match=r"data: another join writes it; wait for its end$"),
    ):
        join_apart(feed.folder / "join.yaml", night(0), night(0) - HOUR)


def test_a_join_that_is_killed_is_said(feed: JoinedFeed) -> None:
    with stopped_join(feed) as (parent, child):
        child.kill()
        said, _ = parent.communicate()
    assert "the join was ended by SIGKILL" in said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_the_process_that_began_it(feed: JoinedFeed, number: signal.Signals) -> None:
    with stopped_join(feed) as (parent, child):
        parent.send_signal(number)
        wait_for(lambda: has_ended(child))
    join_apart(feed.folder / "join.yaml", night(0), night(0) - HOUR)
    assert len(list((feed.folder / "data").glob("date=*/*.parquet"))) == 24 - HOURS[0]
