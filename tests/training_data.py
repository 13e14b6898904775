"""A small feed for the tests of training/: Parquet logs drawn from a known law, its schema, and training files.

In: a folder, how many rows, a seed. Out: files as a user would have them. A click comes from `sigmoid(quality of the
video + taste of the user - position)`, a like from the quality alone and is observed on a mask, watch time is
log-normal around the quality.
"""

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from numpy.typing import NDArray

from training.run import state_file, table_files
from training.run.checkpoints import STATE
from training.run.progress import TrainingProgress
from training.run.run import BEST, LAST, WEIGHTS, Run

SCHEMA = """
name: clips
features:
  - {name: user_id,  side: user,      kind: id,      buckets: 100, dim: 4}
  - {name: history,  side: user,      kind: id_list, table: video, max_length: 3, pooling: mean}
  - {name: tab,      side: context,   kind: id,      dtype: string, vocabulary: [home, follow], dim: 4}
  - {name: video,    side: candidate, kind: id,      vocabulary: fitted, dim: 4}
  - {name: duration, side: candidate, kind: number,  transform: [log1p, standardise], missing: 9}
  - {name: position, side: training_only, kind: id,  vocabulary: [0, 1, 2], dim: 4, serving_value: 0}
tasks:
  - {name: click, kind: binary,     label: is_click}
  - {name: like,  kind: binary,     label: is_like, mask: like_known, loss_weight: 0.5, negative_sampling_rate: 0.5}
  - {name: watch, kind: regression, label: watch_ms, transform: log1p}
"""
VIDEOS = 30
USERS = 40
DAYS = 6
_UNMOUNT_SECONDS = 30.0

Json = dict[str, Any]


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logistic function."""
    odds: NDArray[np.float64] = np.exp(logits)
    return odds / (1.0 + odds)


def feed_table(rows: int, seed: int = 0) -> pa.Table:
    """`rows` impressions over six days, in the order of time. One in twenty durations and histories is null."""
    rng = np.random.default_rng(seed)
    quality = np.random.default_rng(1).normal(0.0, 1.5, VIDEOS)
    taste = np.random.default_rng(2).normal(0.0, 0.7, USERS)
    video, user = rng.integers(0, VIDEOS, rows), rng.integers(0, USERS, rows)
    position = rng.integers(0, 3, rows)
    histories = [rng.integers(0, VIDEOS, int(rng.integers(0, 6))).tolist() for _ in range(rows)]
    known = rng.random(rows) < 0.8
    like = rng.random(rows) < sigmoid(quality[video] - 1.0)
    return pa.table(
        {
            "user_id": pa.array(user - 7, pa.int64()),
            "history": pa.array(
                [None if rng.random() < 0.05 else history for history in histories], pa.list_(pa.int64())
            ),
            "tab": pa.array(rng.choice(["home", "follow", "elsewhere"], rows)),
            "video": pa.array(video, pa.int64()),
            "duration": pa.array(rng.lognormal(2.0, 1.0, rows), mask=rng.random(rows) < 0.05),
            "position": pa.array(position, pa.int64()),
            "is_click": pa.array(
                (rng.random(rows) < sigmoid(quality[video] + taste[user] - 0.7 * position)).astype(np.int8)
            ),
            "is_like": pa.array(like.astype(np.int64), mask=~known),
            "like_known": pa.array(known),
            "watch_ms": pa.array(np.rint(np.exp(7.0 + 0.5 * quality[video] + rng.normal(0, 0.5, rows)))),
            "day": pa.array(np.sort(rng.integers(1, DAYS + 1, rows)), pa.int32()),
        }
    )


def write_feed(folder: Path, rows: int = 1500, seed: int = 0) -> Path:
    """`feed_table` as three files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    table = feed_table(rows, seed)
    for part, start in enumerate(range(0, rows, -(-rows // 3))):
        pq.write_table(table.slice(start, -(-rows // 3)), folder / f"part-{part}.parquet")
    return folder


def training_file(folder: Path, *, schema: str = SCHEMA, **changes: Any) -> Path:
    """A training file in `folder` for the data in `folder`/data. `changes` replace top-level keys."""
    (folder / "schema.yaml").write_text(schema, encoding="utf-8")
    content: Json = {
        "schema": str(folder / "schema.yaml"),
        "data": {
            "path": str(folder / "data"),
            "split": {"column": "day", "train": {"max": 4}, "validation": 5, "test": [6]},
            "group_by": "user_id",
        },
        "network": {"fusion": {"kind": "adatt_sp", "levels": [8], "experts_per_task": 1}, "tower": [4]},
        "output": str(folder / "run"),
        "batch_size": 64,
        "epochs": 2,
        "seed": 3,
        **changes,
    }
    path = folder / "training.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


class Stopped(Exception):
    """End of a training by `stop_at`."""


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Training dies right after its `step`-th update."""
    left = [step]
    original = TrainingProgress.advance

    def advance(self: TrainingProgress, rows: int, loss: float) -> None:
        original(self, rows, loss)
        left[0] -= 1
        if not left[0]:
            raise Stopped

    monkeypatch.setattr(TrainingProgress, "advance", advance)


def assert_same_state(one: Any, other: Any, place: str = "") -> None:
    """Two checkpoints' contents are equal, tensors bit for bit."""
    assert type(one) is type(other), place
    if isinstance(one, Mapping):
        assert list(one) == list(other), place
        for key in one:
            assert_same_state(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for position, pair in enumerate(zip(one, other, strict=True)):
            assert_same_state(*pair, f"{place}/{position}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    else:
        assert one == other, place


def saved_state(path: Path) -> dict[str, Any]:
    """All of a run's checkpoint folder. The ranker's weights go by their names in the ranker, where all tables have one
    optimizer."""
    state = state_file.load(path / STATE)
    ranker = {f"network.{name}": value for name, value in state.pop("network").items()}
    state["ranker"], state["momenta"] = ranker, {}
    for name, value in sorted(table_files.read_whole(path).items()):
        if name.startswith(WEIGHTS):
            ranker[f"embeddings.collection.embedding_bags.{name.removeprefix(WEIGHTS)}.weight"] = value
        else:
            state["momenta"][name] = value
    return state


def assert_same_checkpoints(one: Run, other: Run) -> None:
    """The newest and the best checkpoint of two runs are equal, tensors bit for bit. Only their clocks differ."""
    for name in (LAST, BEST):
        states = [saved_state(run.path / name) for run in (one, other)]
        for state in states:
            del state["progress"]["seconds"]
        assert_same_state(states[0], states[1], name)


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder (or a link to one)."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[Path]:
    """A file system of its own with only so much room, in `folder`. Skips where mounting is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "feedrank-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs the right to mount one")
    try:
        yield folder
    finally:
        # What a process that has just ended had open may keep it busy for a moment.
        deadline = time.monotonic() + _UNMOUNT_SECONDS
        while subprocess.run(["umount", str(folder)], check=False).returncode:
            assert time.monotonic() < deadline, "the file system stays busy"
            time.sleep(0.05)
