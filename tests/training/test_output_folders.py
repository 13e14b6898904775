"""Output folders: a job writes into a new, an empty or its own one. The user's files stay, byte for byte."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.artifacts import publish_artifact
from tests.training.compare.test_compare_run import experiment_file
from tests.training.datasets.kuairand_log import as_parquet, make_log
from tests.training.images.test_image_experiment import experiment as image_experiment
from tests.training.score.test_score import log_table, write_log
from tests.training_data import SCHEMA, Stopped, files_of, stop_at, training_file, write_feed
from training.__main__ import main
from training.config import TrainingConfig
from training.run.run import CONFIG, Run
from training.train import train

OWN_FILES = {
    "log.csv": "mine",
    "summary.json": "{}",
    "config.json": '{"lr": 0.1}',
    "results.json": "{}",
    "schema.json": "{}",
    "inside/photo.png": "mine",
    "evaluation-old.json": "{}",
}


def hostile(folder: Path) -> Path:
    """A folder of the user's whose files have names that jobs write."""
    for name, text in OWN_FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def _train(folder: Path, out: Path) -> list[str]:
    return ["train", str(folder / "training.yaml"), "--set", f"output={out}"]


def _report(folder: Path, out: Path) -> list[str]:
    return ["report", str(folder / "training.yaml"), "--set", f"output={out}"]


def _compare(folder: Path, out: Path) -> list[str]:
    return ["compare", str(experiment_file(folder)), "--output", str(out)]


def _images(folder: Path, out: Path) -> list[str]:
    file = folder / "images.yaml"
    file.write_text(json.dumps(image_experiment(folder)))
    return ["images", str(file), "--output", str(out)]


def _score(folder: Path, out: Path) -> list[str]:
    version = publish_artifact(folder / "models")
    return ["score", str(version), str(write_log(folder / "log", log_table(1))), "--out", str(out)]


def _simulate(folder: Path, out: Path) -> list[str]:
    return ["simulate", "--rows", "300", "--users", "10", "--items", "30", "--out", str(out)]


def _prepare(folder: Path, out: Path) -> list[str]:
    if not (folder / "source").exists():
        as_parquet(folder / "source", make_log(300))
    return ["prepare", "kuairand", "--source", str(folder / "source"), "--out", str(out)]


WRITERS = [_train, _report, _compare, _images, _score, _simulate, _prepare]
Writer = Callable[[Path, Path], list[str]]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small log and its training file."""
    folder = tmp_path_factory.mktemp("outputs")
    write_feed(folder / "data", 300)
    training_file(folder, epochs=1)
    return folder


@pytest.fixture
def copied(work: Path, tmp_path: Path) -> Path:
    shutil.copytree(work / "data", tmp_path / "data")
    training_file(tmp_path, epochs=1)
    return tmp_path


@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_of_the_users_is_left_as_it_is(
    writer: Writer, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = hostile(copied / "mine")
    before = files_of(out)
    command = writer(copied, out)
    assert main(command) == 2
    assert f"{out}: is not empty and " in capsys.readouterr().err
    (copied / "link").symlink_to(out)
    command[-1] = command[-1].replace(str(out), str(copied / "link"))
    assert main(command) == 2
    assert files_of(out) == before


@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_no_folder_is_refused(writer: Writer, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "file").write_text("mine")
    assert main(writer(copied, copied / "file")) == 2
    assert f"{copied / 'file'}: is a file" in capsys.readouterr().err
    (copied / "nowhere").symlink_to(copied / "gone")
    assert main(writer(copied, copied / "nowhere")) == 2
    assert "is a link to nothing" in capsys.readouterr().err
    assert (copied / "nowhere").is_symlink()
    assert not (copied / "gone").exists()


@pytest.mark.parametrize("text", ["", "  ", "s3://bucket/run"])
@pytest.mark.parametrize("writer", [_train, _report, _compare, _simulate])
def test_an_empty_path_and_a_url_are_refused(
    text: str, writer: Writer, copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "here").mkdir()
    command = [part.replace("OUT", f"'{text}'" if "=" in part else text) for part in writer(copied, Path("OUT"))]
    monkeypatch.chdir(copied / "here")
    try:
        code = main(command)
    except SystemExit as stopped:  # argparse
        code = int(str(stopped.code))
    assert code == 2
    assert ("is a URL" if "://" in text else "is empty; name a folder") in capsys.readouterr().err
    assert list((copied / "here").iterdir()) == []


@pytest.mark.parametrize("writer", [_train, _report, _compare, _images, _score])
@pytest.mark.parametrize("inside", ["", "day=3", "runs/first"])
def test_the_datas_own_folder_is_refused(
    inside: str, writer: Writer, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = copied / {"_score": "log", "_images": "fashion"}.get(writer.__name__, "data")
    command = writer(copied, data / inside)
    before = files_of(data)
    assert main(command) == 2
    assert f"{data / inside}: is {'inside ' if inside else ''}the folder of the" in capsys.readouterr().err
    assert files_of(data) == before


def test_a_vocabulary_replaces_its_own_files_alone(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["vocabulary", str(copied / "training.yaml"), "--out", str(copied / "ids.json")]
    for name in ("ids.json", "ids-report.json", "ids-report.md"):
        (copied / name).write_text("{}")
        assert main(command) == 2
        assert f"{copied / name}: is there and was not written by this command" in capsys.readouterr().err
        assert (copied / name).read_text() == "{}"
        (copied / name).unlink()
    (copied / ".ids-work").mkdir()
    (copied / ".ids-work" / "thesis.txt").write_text("mine")
    assert main(command) == 2
    assert (copied / ".ids-work" / "thesis.txt").read_text() == "mine"
    shutil.rmtree(copied / ".ids-work")
    assert main(command) == 0
    assert main(command) == 0  # over its own


def test_report_then_train_then_train_again(copied: Path) -> None:
    out = copied / "run"
    out.mkdir()
    (out / ".gitkeep").touch()  # counts as empty, as does what a file system puts there
    (out / "lost+found").mkdir()
    assert main(_report(copied, out)) == 0
    assert main(_report(copied, out)) == 0
    assert main(_train(copied, out)) == 0
    assert main(_report(copied, out)) == 0
    assert main(_train(copied, out)) == 0
    assert (out / ".gitkeep").exists()


@pytest.mark.parametrize("read", ["memory", "stream"])
@pytest.mark.parametrize("point", ["write", "report"])
def test_a_run_killed_before_its_first_step_goes_on(
    point: str, read: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed where its folder holds no checkpoint yet, and before its configuration is there."""
    config = TrainingConfig.load(copied / "training.yaml", [f"data.read={read}"])
    with monkeypatch.context() as patch:

        def killed(run: Run) -> None:
            raise Stopped

        if point == "write":
            patch.setattr(Run, "write", killed)
        else:
            stop_at(patch, 1)
        with pytest.raises(Stopped):
            train(config, show=False)
    assert (copied / "run" / CONFIG).exists() == (point == "report")
    (copied / "run" / ".config.json.partial").touch()
    assert train(config, show=False).summary()["status"] == "finished"


def test_a_run_that_begins_anew_keeps_the_users_files_in_its_folder(copied: Path) -> None:
    config = TrainingConfig.load(copied / "training.yaml")
    run = train(config, show=False)
    (run.path / "inside").mkdir()
    own = [run.path / name for name in ("notes.md", "inside/photo.png", "evaluation-of-mine.json")]
    for path in own:
        path.write_text("mine")
    stale = run.path / "inside" / "expert_weights.png"
    stale.touch()
    shutil.rmtree(run.path / "checkpoints")
    train(config, show=False)
    assert [path.read_text() for path in own] == ["mine"] * 3
    assert not stale.exists()


def test_a_config_json_of_another_program_is_no_run(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = copied / "model"
    out.mkdir()
    (out / "config.json").write_text(json.dumps({"schema": SCHEMA, "data": "x", "network": "y", "output": "z"}))
    before = files_of(out)
    assert main(_train(copied, out)) == 2
    assert "is no training run" in capsys.readouterr().err
    assert files_of(out) == before


def test_a_simulation_with_files_of_the_users_is_not_replaced(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = copied / "log"
    assert main(_simulate(copied, out)) == 0
    assert main(_simulate(copied, out)) == 0
    (out / "truth" / "notes.md").write_text("mine")
    assert main(_simulate(copied, out)) == 2
    assert "holds 'truth/notes.md' beside what is replaced (1 in all)" in capsys.readouterr().err
    assert (out / "truth" / "notes.md").read_text() == "mine"
    (out / "truth" / "notes.md").unlink()
    # Of a link, what it points to is replaced, and the link stays.
    (copied / "link").symlink_to(out)
    shutil.rmtree(out / "truth")
    assert main(_simulate(copied, copied / "link")) == 0
    assert (copied / "link").is_symlink()
    assert (out / "truth").is_dir()


def test_an_experiment_goes_on_in_its_own_folder(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = copied / "out"
    command = ["compare", str(experiment_file(copied, seeds=1))]
    (out / "clips" / "bottom" / "seed-0").mkdir(parents=True)
    (out / ".lock").touch()
    (out / "clips" / "bottom" / "seed-0" / ".lock").touch()  # killed at once
    assert main(command) == 0
    assert main([*command, "--report"]) == 0
    for folder in (out / "clips").iterdir():
        shutil.rmtree(folder)  # what is left says whose folder it is
    assert main([*command, "--report"]) == 2
    assert "no cell is trained" in capsys.readouterr().err
