"""The command line: help at once, every mistake in one line, and signals that lose no work."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training_data import assert_same_state, feed_table, saved_state, training_file, write_feed
from training.__main__ import main
from training.config import TrainingConfig
from training.run import state_file
from training.run.checkpoints import STATE
from training.run.run import BEST, LAST, LOG, SUMMARY, Run
from training.train import train

COMMANDS = ("simulate", "prepare", "train", "evaluate", "inspect", "export", "catalogue", "compare", "images")


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=120)


def test_help_lists_every_command_and_waits_for_no_heavy_library() -> None:
    script = (
        "import sys\n"
        "from training.__main__ import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "finally:\n"
        "    print(sorted({'torch', 'torchrec', 'numpy', 'pyarrow', 'scipy'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = run_python("-c", script)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "[]"
    for command in COMMANDS:
        assert command in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "usage: python -m training" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["tain"], ["train"], ["export", "run"], ["evaluate", "r", "--split", "dev"]])
def test_a_command_that_is_none_shows_its_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage:" in capsys.readouterr().err


# Each mistake of a user: what they did (in a folder with good data, a training file and a finished run), what they read

Mistake = Callable[[Path], list[str]]


def _train(*changes: str) -> Mistake:
    return lambda folder: [
        "train",
        f"{folder}/training.yaml",
        *(part for change in changes for part in ("--set", change)),
    ]


def _after(damage: Callable[[Path], object], arguments: Mistake) -> Mistake:
    def act(folder: Path) -> list[str]:
        damage(folder)
        return arguments(folder)

    return act


def _bad_label(folder: Path) -> None:
    table = feed_table(60)
    clicks = pa.array(np.arange(60) % 3)
    pq.write_table(
        table.set_column(table.schema.get_field_index("is_click"), "is_click", clicks), folder / "data" / "a.parquet"
    )


def _remove(path: str) -> Callable[[Path], object]:
    return lambda folder: (folder / path).unlink()


def _truncate(path: str) -> Callable[[Path], object]:
    return lambda folder: (folder / path).write_bytes((folder / path).read_bytes()[:-40])


def _edit(path: str, old: str, new: str) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        text = (folder / path).read_text(encoding="utf-8")
        assert old in text
        (folder / path).write_text(text.replace(old, new), encoding="utf-8")

    return edit


def _evaluate(*options: str) -> Mistake:
    return lambda folder: ["evaluate", f"{folder}/run", *options]


def _export(folder: Path) -> list[str]:
    return ["export", f"{folder}/run", "--models", f"{folder}/models"]


MISTAKES: dict[str, tuple[Mistake, str]] = {
    "no such training file": (lambda folder: ["train", f"{folder}/nothing.yaml"], "nothing.yaml: cannot be read"),
    "a folder for a file": (lambda folder: ["train", str(folder)], "cannot be read"),
    "unknown key": (_train("epoch=3"), "unknown key 'epoch'; did you mean 'epochs'?"),
    "bad --set": (_train("epochs"), "--set epochs: expected key=value"),
    "value out of range": (_train("batch_size=0"), "batch_size"),
    "no such schema": (_train("schema=none.yaml"), "none.yaml: cannot be read"),
    "unknown schema key": (_after(_edit("schema.yaml", "pooling", "poling"), _train()), "did you mean 'pooling'?"),
    "absent column": (_after(_edit("schema.yaml", "is_like", "liked"), _train()), "part-0.parquet: no column 'liked'"),
    "no data": (_train("data.path=nowhere"), "nowhere: no *.parquet file here"),
    "empty split": (_train("data.split.validation=77"), "no row is in split validation"),
    "overlapping splits": (_train("data.split.train={max: 5}"), "in split train and in split validation"),
    "split of another type": (_train("data.split.train=monday"), "split column 'day' of type int32"),
    "label not 0 or 1": (
        _after(_bad_label, _train()),
        "a.parquet: column 'is_click' (task click): row 2: must be 0 or 1, got 2; 20 such rows",
    ),
    "truncated Parquet": (_after(_truncate("data/part-1.parquet"), _train()), "part-1.parquet: not a readable Parquet"),
    "other configuration": (_train("seed=77"), "holds a run from which the configuration differ"),
    "output is a file": (_train("output=/dev/null/run"), "/dev/null"),
    "loss not finite": (_train("output={folder}/hot", "optimizer.dense.learning_rate=1e30"), "not finite in epoch 1"),
    "evaluate nothing": (lambda folder: ["evaluate", f"{folder}/data"], "not a training run"),
    "evaluate unfinished": (
        _after(lambda folder: (folder / "run" / SUMMARY).unlink(), _evaluate()),
        "has not finished",
    ),
    "negative replicates": (_evaluate("--replicates", "-1"), "replicates"),
    "damaged best checkpoint": (
        _after(_truncate(f"run/{BEST}/state.pt"), _evaluate()),
        "best: the checkpoint is damaged (state.pt",
    ),
    "broken run file": (_after(_truncate("run/schema.json"), _export), "schema.json: not readable as JSON"),
    "data gone": (_after(lambda folder: shutil.rmtree(folder / "data"), _evaluate()), "no *.parquet file here"),
    "export nothing": (lambda folder: ["export", str(folder), "--models", str(folder)], "not a training run"),
    "bad model name": (lambda folder: [*_export(folder), "--name", "../x"], "model name '../x' must match"),
    "models is a file": (_after(lambda folder: (folder / "models").touch(), _export), "models"),
    "simulate too little": (
        lambda folder: ["simulate", "--rows", "3", "--out", f"{folder}/new"],
        "rows must be between",
    ),
    "prepare nothing": (
        lambda folder: ["prepare", "census", "--source", f"{folder}/none", "--out", f"{folder}/new"],
        "none",
    ),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "work"
    write_feed(folder / "data", 300)
    train(TrainingConfig.load(training_file(folder, epochs=1)), show=False)
    return folder


@pytest.fixture
def work(good: Path) -> Path:
    """The good folder, restored for each test in the same place: a run knows its paths."""
    pristine = good.with_name("pristine")
    if not pristine.exists():
        shutil.copytree(good, pristine)
    shutil.rmtree(good)
    return Path(shutil.copytree(pristine, good))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_one_line_and_status_2(name: str, work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mistake, says = MISTAKES[name]
    arguments = [argument.replace("{folder}", str(work)) for argument in mistake(work)]
    assert main(arguments) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert says in line
    assert "Traceback" not in line


def test_the_good_folder_is_good(work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(_train()(work)) == 0
    assert main(_evaluate("--replicates", "5")(work)) == 0
    assert main(_export(work)) == 0
    assert capfd.readouterr().out.splitlines()[-1] == f"{work}/models/clips/1"


# Signals, to a real process


def start_training(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "training", "train", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_a_checkpoint(process: subprocess.Popen[str], path: Path, after: str) -> None:
    """Return as soon as the link `path` leads elsewhere than to `after`."""
    deadline = time.monotonic() + 120
    while not path.is_symlink() or os.readlink(path) == after:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint in two minutes"
        time.sleep(0.002)


@pytest.mark.slow
def test_interrupted_killed_and_resumed_training_ends_as_if_left_alone(tmp_path: Path) -> None:
    write_feed(tmp_path / "data", 1200)
    config = training_file(tmp_path, epochs=12, early_stopping=None, batch_size=32, checkpoint_seconds=0.05)
    last = tmp_path / "run" / LAST

    interrupted = start_training(config)
    wait_for_a_checkpoint(interrupted, last, "")
    interrupted.send_signal(signal.SIGINT)
    _, errors = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; what was saved is kept"
    assert "Traceback" not in errors
    assert not (tmp_path / "run" / SUMMARY).exists()

    told = start_training(config)
    wait_for_a_checkpoint(told, last, os.readlink(last))
    told.send_signal(signal.SIGTERM)
    _, errors = told.communicate(timeout=60)
    assert told.returncode == 143
    saved, said = errors.splitlines()[-2:]
    assert said == "ended by a signal; what was saved is kept"
    assert "Traceback" not in errors
    # The step at which it ended is what is saved, not one before.
    progress = state_file.load(last / STATE)["progress"]
    assert saved == f"saved at epoch {progress['epoch'] + 1}, step {progress['step_in_epoch']}"

    killed = start_training(config)
    wait_for_a_checkpoint(killed, last, os.readlink(last))
    killed.kill()
    _, errors = killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert "resuming" in errors
    assert not (tmp_path / "run" / SUMMARY).exists()

    resumed = train(TrainingConfig.load(config), show=False)
    whole = train(TrainingConfig.load(config, [f"output={tmp_path}/whole"]), show=False)
    assert_equal_weights(resumed, whole)


def assert_equal_weights(one: Run, other: Run) -> None:
    for name in (LAST, BEST):
        states = [saved_state(run.path / name) for run in (one, other)]
        for part in ("ranker", "optimizers"):
            assert_same_state(states[0][part], states[1][part], f"{name}/{part}")
    assert (one.path / LOG).read_bytes() == (other.path / LOG).read_bytes()
