"""kill -9 at random moments of a night: what it ends with is what a night that is left alone ends with."""

import json
import os
import subprocess
import sys
from pathlib import Path

from model.artifact.artifact import Artifact
from model.rollout.decisions import DAILY
from model.rollout.labels import Labels
from tests.deploy.programs import ROOT
from tests.training.daily.nights import Feed

KILLS = 5


def test_a_night_that_is_killed_again_and_again_ends_as_one_left_alone(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "feed")
    feed.folder.mkdir()
    feed.write_files(publish={"label": "shadow"})
    for number in range(5):
        feed.write_day(number)
        if number == 3:
            feed.run_night(number)
    command = [sys.executable, "-m", "tests.training.daily.killed", str(feed.folder), "4", str(KILLS), "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    alone = Feed(feed.folder.with_name("feed-alone"))
    assert feed.versions() == alone.versions() == [1, 2]
    assert feed.labels == alone.labels == Labels(stable=1, shadow=2)
    # The same bytes: weights, fitted features, golden requests and the rest.
    files, others = (Artifact.open(each.models / "2").manifest.files for each in (feed, alone))
    assert files == others
    # Each decision once, in the same order.
    decided, expected = (
        [(entry.step, entry.decision, entry.figures.get("day")) for entry in each.entries if entry.step != DAILY]
        for each in (feed, alone)
    )
    assert decided == expected, seen["kills"]
