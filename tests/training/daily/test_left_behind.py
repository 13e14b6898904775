"""Old runs and killed publications go, and nothing else does."""

import os
import time
from datetime import date
from pathlib import Path

from training.daily.left_behind import remove_killed_publications, remove_old_runs


def test_runs_of_long_ago_go_and_others_stay(tmp_path: Path) -> None:
    gone = ["20261101-cold-0123abcd", "20261112-warm-0123abcd"]
    kept = [
        "20261113-warm-0123abcd",  # seven days before the newest
        "20261120-cold-0123abcd",
        "20261121-cold-0123abcd",
        "20269999-cold-0123abcd",
        "20261101-cold-mine",
        "my-run",
    ]
    for name in (*gone, *kept):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
    (tmp_path / "elsewhere" / "data").mkdir(parents=True)
    (tmp_path / "runs" / "20261102-cold-0123abcd").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "20261103-cold-0123abcd").write_text("a file")
    remove_old_runs(tmp_path / "runs", date(2026, 11, 20))
    left = {path.name for path in (tmp_path / "runs").iterdir()}
    assert left == {*kept, "20261102-cold-0123abcd", "20261103-cold-0123abcd"}
    assert (tmp_path / "elsewhere" / "data").is_dir()
    remove_old_runs(tmp_path / "nowhere", date(2026, 11, 20))


def test_publications_that_were_killed_go_and_one_at_work_stays(tmp_path: Path) -> None:
    for name, age in ((".publishing-old", 90_000), (".publishing-new", 60)):
        (tmp_path / name / "files").mkdir(parents=True)
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    (tmp_path / "1").mkdir()
    remove_killed_publications(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".publishing-new", "1"}
