"""kill -9 at random moments of a night: what it ends with is what a night that is left alone ends with."""

import json
import os
import subprocess
import sys
from pathlib import Path

from model.rollout.labels import Canary, Labels
from tests.deploy.programs import ROOT
from tests.training.daily.joined_nights import JoinedFeed

KILLS = 5


def test_a_night_that_is_killed_again_and_again_ends_as_one_left_alone(tmp_path: Path) -> None:
    """Both logs are joined, and a user is forgotten. `make bench-loop-kills` is the long form."""
    feed = JoinedFeed(tmp_path / "feed")
    feed.folder.mkdir()
    feed.write_files()
    for number in range(4):
        feed.write_logs(number)
    feed.run_night(3)
    feed.write_logs(4, is_lower=True)
    command = [sys.executable, "-m", "tests.training.daily.killed", str(feed.folder), "4", str(KILLS), "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert sum(seen["kills"].values()) > 0
    own, alone = feed.ended(), JoinedFeed(feed.folder.with_name("feed-alone")).ended()
    # The same decisions in the same order, and the same bytes: of versions, calibrations, joined rows, counts and logs.
    assert [key for key in {**own, **alone} if own.get(key) != alone.get(key)] == [], seen["kills"]
    assert feed.versions() == [1, 2]
    assert feed.labels == Labels(stable=1, canary=Canary(version=2, share=0.5))
    assert len(list(feed.models.glob("derived/1/calibration/*/manifest.json"))) == 1
