"""`compare --storage` with a real database server: machines share trials, lose the server, and go on."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.training.compare.searches import EXPERTS, experiment_file
from tests.training.data.postgres import PASSWORD, Server, postgres
from tests.training_data import write_feed
from training.__main__ import main
from training.compare import search as searching


@pytest.fixture
def server() -> Iterator[Server]:
    with postgres() as running:
        yield running


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    write_feed(tmp_path / "data", 600)
    return tmp_path


def test_two_machines_train_each_trial_once_and_choose_the_same(feed: Path, server: Server) -> None:
    file = experiment_file(feed)
    outputs = [feed / name for name in ("one", "two")]
    command = [sys.executable, "-m", "training", "compare", str(file), "--storage", server.url]
    machines = [
        subprocess.Popen([*command, "--output", str(output)], env={**os.environ, "OMP_NUM_THREADS": "1"})
        for output in outputs
    ]
    assert [machine.wait(timeout=240) for machine in machines] == [0, 0]
    found = [json.loads((output / "search.json").read_text(encoding="utf-8")) for output in outputs]
    assert found[0] == found[1]
    trials = found[0]["clips"]["ple"]["trials"]
    assert sorted(map(str, (trial["parameters"]["network.fusion"] for trial in trials))) == sorted(map(str, EXPERTS))

    # What the database holds is what both say.
    with psycopg.connect(server.url.replace("+psycopg", "")) as connection:
        rows = connection.execute(
            "select number, value from studies join trials using (study_id) join trial_values using (trial_id)"
            " where study_name = 'tiny/clips/ple' order by number"
        ).fetchall()
    assert rows == [(trial["number"], trial["value"]) for trial in trials]


def test_server_that_is_lost_ends_the_search_with_its_name_and_the_search_goes_on_later(
    feed: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = experiment_file(feed)
    command = ["compare", str(file), "--storage", server.url]
    tell = searching.Study._record_end

    def lose(*arguments: object) -> None:
        server.stop()
        tell(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(searching.Study, "_record_end", lose)
        assert main(command) == 2
    said = capsys.readouterr().err
    assert f"--storage postgresql+psycopg://127.0.0.1:{server.port}/postgres: cannot be used" in said
    assert PASSWORD not in said

    runs = sorted((feed / "out" / "search").rglob("summary.json"))
    times = [run.stat().st_mtime_ns for run in runs]
    assert runs
    server.start()
    assert main(command) == 0
    assert [run.stat().st_mtime_ns for run in runs] == times, "a run that had ended was trained again"


def test_wrong_password_is_named_and_not_shown(feed: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = server.url.replace("s3cret", "guess")
    assert main(["compare", str(experiment_file(feed)), "--storage", wrong]) == 2
    said = capsys.readouterr().err
    assert "password authentication failed" in said
    assert "guess" not in said
    assert not (feed / "out" / "search.json").exists()
    # The table of trials was not made by anybody.
    with psycopg.connect(server.url.replace("+psycopg", "")) as connection:
        assert connection.execute("select to_regclass('public.trials')").fetchone() == (None,)
