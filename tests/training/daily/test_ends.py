"""SIGTERM within a night: the job ends at once or at the end of a step, says so, and the next run goes on."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from model.rollout.decisions import DAILY, FINISH, TRAIN
from tests.deploy.programs import ROOT, wait_for
from tests.training.daily.joined_nights import JoinedFeed
from tests.training.daily.nights import day, night

FIRST = 3
# A step of training takes milliseconds, an hour of the join tenths of a second.
SECONDS = 60


def end_night(feed: JoinedFeed, is_there: Callable[[], bool]) -> str:
    """Run the night's command until something is there, end it by SIGTERM, and return its last lines."""
    command = [sys.executable, "-m", "training", "daily", str(feed.file), "--now", night(FIRST).isoformat()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as job:
        wait_for(lambda: is_there() or job.poll() is not None)
        job.send_signal(signal.SIGTERM)
        _, said = job.communicate(timeout=SECONDS)
    assert job.returncode == 128 + signal.SIGTERM, said
    assert "Traceback" not in said
    return "\n".join(said.splitlines()[-2:])


def test_a_night_that_is_ended_in_the_join_and_in_training_goes_on(tmp_path: Path) -> None:
    feed = JoinedFeed(tmp_path / "feed")
    feed.folder.mkdir()
    feed.write_files()
    training = feed.folder / "training.yaml"
    training.write_text(yaml.safe_dump({**yaml.safe_load(training.read_text()), "epochs": 12}))
    for number in range(FIRST + 1):
        feed.write_logs(number)
    joined = feed.folder / "data"

    said = end_night(feed, lambda: len(list(joined.glob("date=*/*.parquet"))) > 2)
    assert said.endswith("ended by a signal; what was saved is kept")
    assert 2 < len(list(joined.glob("date=*/*.parquet"))) < 24 * (FIRST + 1)

    said = end_night(feed, lambda: any(feed.folder.glob("runs/*/checkpoints/last")))
    assert said.startswith("saved at epoch ")
    assert said.endswith("ended by a signal; what was saved is kept")
    assert [entry.step for entry in feed.entries] == ["data_gate"] * (FIRST + 1)

    assert feed.run_night(FIRST) == f"version 1 was published for {day(FIRST)}"
    assert len(list(feed.folder.glob("runs/*"))) == 1
    assert [entry.decision for entry in feed.entries if entry.step in (TRAIN, DAILY)] == [FINISH, FINISH]
