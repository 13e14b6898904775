"""Appends that are killed: each state of the disk on the way is the catalogue before or after, and takes appends."""

import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

from model.artifact.catalogue import Catalogue, generations
from model.artifact.item_source import MOST_OVERLAYS, UNKNOWN
from model.scorer.scorer import Scorer
from tests.artifacts import publish_artifact
from tests.items import tiny_items, write_items
from training.publish.catalogue import build_catalogue
from training.publish.catalogue_append import append_to_catalogue

GIVE_UP_SECONDS = 300.0
# What changes a folder, as CPython's audit events name it.
_CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree")


def items_at(path: Path, first: int, count: int, seed: int = 0) -> Path:
    """A file of the items numbered from `first`."""
    items = tiny_items(count, seed)
    return write_items(path, {**items, "id": [f"item-{first + n}" for n in range(count)]})


class Disk:
    """Copies of a folder before each change of it. That is what a job leaves that is killed there: what it has not
    handed to the system is lost, and its lock is free."""

    def __init__(self, folder: Path, copies: Path) -> None:
        self._folder, self._copies = str(folder), copies
        self.states: list[Path] = []
        self.is_watching = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.is_watching or event not in _CHANGES or not str(arguments[0]).startswith(self._folder):
            return
        self.is_watching = False  # the copy opens files too
        state = self._copies / str(len(self.states)) / Path(self._folder).name
        shutil.copytree(self._folder, state)
        self.states.append(state)
        self.is_watching = True


def contents(catalogue: Catalogue) -> tuple[list[bool], bytes]:
    """Which items there are, and the sums of those."""
    rows_N = catalogue.rows_of([f"item-{n}" for n in range(60)])
    is_known_N = rows_N != UNKNOWN
    return is_known_N.tolist(), catalogue.sums(rows_N[is_known_N]).float().numpy().tobytes()


def test_every_state_on_the_way_is_the_catalogue_before_or_after(tmp_path: Path) -> None:
    """Of the append that merges all overlays: it writes, renames and removes most."""
    version = publish_artifact(tmp_path / "models")
    build_catalogue(version, items_at(tmp_path / "items.parquet", 0, 30))
    for number in range(MOST_OVERLAYS):
        append_to_catalogue(version, items_at(tmp_path / f"{number}.parquet", 30 + number, 2, number))
    family = version.parent / "derived" / "1" / "catalogue"
    scorer = Scorer.load(version)
    newest = scorer.open_catalogue(family / "9")
    before = contents(newest)
    last = items_at(tmp_path / "last.parquet", 28, 12, seed=77)
    disk = Disk(family, tmp_path / "states")
    disk.is_watching = True
    append_to_catalogue(version, last)
    disk.is_watching = False
    after = contents(scorer.open_catalogue(family / "10"))
    assert len(after[0]) == len(before[0])
    assert after != before
    seen = []
    for state in disk.states:
        number = generations(state)[-1]
        found = contents(scorer.open_catalogue(state / str(number)))
        assert found == (before if number == 9 else after)
        seen.append((number, sorted(path.name for path in state.iterdir() if not path.name.startswith("."))))
    assert {number for number, _ in seen} == {9, 10}
    assert len(seen) > 50
    # From the first of each kind of state: with hidden folders, after the rename, while old generations go.
    firsts = [seen.index(one) for one in [seen[0], *(b for a, b in pairwise(seen) if a != b)]]
    for index in [*firsts, firsts[1] - 1]:
        state = disk.states[index]
        other = Path(shutil.copytree(version, state.parent / "models" / "tiny" / "1"))
        shutil.copytree(state, other.parent / "derived" / "1" / "catalogue")
        place = append_to_catalogue(other, last)
        assert contents(scorer.open_catalogue(place)) == after
        assert not list(place.parent.glob(".publishing-*"))


def test_a_killed_process_leaves_a_catalogue_and_another_goes_on_without_torchrec(tmp_path: Path) -> None:
    version = publish_artifact(tmp_path / "models")
    build_catalogue(version, items_at(tmp_path / "items.parquet", 0, 30))
    more = items_at(tmp_path / "more.parquet", 30, 5)
    family = version.parent / "derived" / "1" / "catalogue"
    append = f"assert main(['catalogue', {str(version)!r}, {str(more)!r}, '--append']) == 0"
    script = f"import sys; from training.__main__ import main; {append}; assert 'torchrec' not in sys.modules"
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL) as job:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while not list(family.glob(".publishing-*")) and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(job.pid, signal.SIGKILL)
    scorer = Scorer.load(version)
    left = scorer.open_catalogue(scorer.catalogue_generations()[-1])
    assert left.items == (30 if left.manifest.generation == 1 else 35)
    subprocess.run([sys.executable, "-c", script], check=True)
    assert scorer.open_catalogue(scorer.catalogue_generations()[-1]).items == 35
    assert not list(family.glob(".publishing-*"))
