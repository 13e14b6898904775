"""A run's checkpoint folders: found again, pruned, verified, refused by name. A full disk and a forged file."""

import io
import itertools
import logging
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from tests.training_data import files_of, small_disk, training_file, write_feed
from training.config import TrainingConfig
from training.distributed.ranks import ALONE
from training.run import state_file, table_files
from training.run.checkpoints import BEST_LINK, FOLDER, LAST_LINK, MANIFEST, STATE, Checkpoints, verified
from training.run.run import Run
from training.train import train


def tables(step: int, rows: int = 5) -> dict[str, Tensor]:
    return {"weights.user": torch.full((rows, 2), float(step)), "momenta.user": torch.full((rows,), step + 0.5)}


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[Checkpoints]:
    with Checkpoints(tmp_path, ALONE, keep=2, about={"schema": "clips"}) as checkpoints:
        yield checkpoints


def save(saved: Checkpoints, step: int, **options: Any) -> None:
    saved.save(step, {"step": step}, tables(step), **options)
    saved.wait()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / FOLDER).iterdir())


def test_the_newest_and_the_best_are_kept(saved: Checkpoints, tmp_path: Path) -> None:
    for step, is_best in ((1, True), (2, False), (3, True), (4, False), (5, False), (6, False)):
        save(saved, step, is_best=is_best)
    assert names(tmp_path) == ["0000000003", "0000000005", "0000000006", "best", "last"]
    assert os.readlink(tmp_path / FOLDER / LAST_LINK) == "0000000006"
    assert os.readlink(tmp_path / FOLDER / BEST_LINK) == "0000000003"
    newest = saved.newest()
    assert newest == tmp_path / FOLDER / "0000000006"
    assert state_file.load(newest / STATE) == {"step": 6}
    for name, expected in tables(6).items():
        assert torch.equal(table_files.read_whole(newest)[name], expected)


def test_what_training_changes_after_save_is_not_in_the_checkpoint(saved: Checkpoints, tmp_path: Path) -> None:
    state, held = {"step": torch.zeros(3)}, tables(1)
    saved.save(1, state, held)
    state["step"].fill_(7)
    held["weights.user"].fill_(7)
    saved.wait()
    folder = tmp_path / FOLDER / LAST_LINK
    assert torch.equal(state_file.load(folder / STATE)["step"], torch.zeros(3))
    assert torch.equal(table_files.read_whole(folder)["weights.user"], tables(1)["weights.user"])


def test_without_room_for_a_copy_the_tables_are_on_the_disk_when_save_returns(
    saved: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    held = tables(1)
    saved.save(1, {"step": 1}, held)
    held["weights.user"].fill_(7)
    assert torch.equal(table_files.read_whole(tmp_path / FOLDER / LAST_LINK)["weights.user"], tables(1)["weights.user"])


@pytest.mark.parametrize("name", [STATE, MANIFEST, table_files.file_of(0)])
@pytest.mark.parametrize("how", ["flipped", "gone", "short"])
def test_damage_is_named_and_the_checkpoint_before_taken(
    saved: Checkpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    for step in (1, 2):
        save(saved, step)
    path = tmp_path / FOLDER / "0000000002" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(content if how == "flipped" else content[:-1])
    if name == MANIFEST and how == "flipped":
        return  # a flipped bit of the manifest may still be one: what it says is then checked against the files
    with caplog.at_level(logging.WARNING):
        assert saved.newest() == tmp_path / FOLDER / "0000000001"
    assert f"{path.parent}: the checkpoint is damaged (" in caplog.text
    assert "using the checkpoint before it" in caplog.text


def test_what_a_killed_write_has_left_is_no_checkpoint_and_is_removed(saved: Checkpoints, tmp_path: Path) -> None:
    save(saved, 1)
    shutil.copytree(tmp_path / FOLDER / "0000000001", tmp_path / FOLDER / ".0000000002.partial")
    again = Checkpoints(tmp_path, ALONE, keep=2, about={"schema": "clips"})
    assert again.newest() == tmp_path / FOLDER / "0000000001"
    assert names(tmp_path) == ["0000000001", "last"]


def test_a_checkpoint_of_another_schema_is_refused_by_name(saved: Checkpoints, tmp_path: Path) -> None:
    save(saved, 1)
    other = Checkpoints(tmp_path, ALONE, keep=2, about={"schema": "songs"})
    with pytest.raises(ValueError, match=r"0000000001: is of another schema \(clips\) than this run \(songs\)"):
        other.newest()


@pytest.mark.parametrize("kibibytes", [24, 64, 400])
def test_a_full_disk_ends_in_one_sentence_and_leaves_what_was_saved(tmp_path: Path, kibibytes: int) -> None:
    """From no room for a file's head to no room for the last page of the tables."""
    with small_disk(tmp_path / "small", kibibytes) as disk, Checkpoints(disk, ALONE, keep=2, about={}) as saved:
        if kibibytes > 50:
            save(saved, 1)
        before = files_of(disk)
        saved.save(2, {"step": 2}, tables(2, rows=100_000))
        with pytest.raises(
            ValueError, match=r"0000000002: the checkpoint cannot be written \(No space left on device\)"
        ):
            saved.wait()
        assert files_of(disk) == before
        if before:
            verified(disk / FOLDER / LAST_LINK)


class _Code:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


def test_code_in_a_file_of_tables_is_refused_and_does_not_run(saved: Checkpoints, tmp_path: Path) -> None:
    save(saved, 1)
    proof = tmp_path / "ran"
    file = tmp_path / FOLDER / LAST_LINK / table_files.file_of(0)
    with io.BytesIO() as content:
        torch.save({"weights.user": _Code(proof)}, content)
        forged = content.getvalue()
    for wrong in (forged, pickle.dumps(_Code(proof)), b"nonsense", b""):
        file.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"tables-0\.pt: not a file of tables"):
            table_files.read_whole(file.parent)
    assert not proof.exists()


@pytest.mark.parametrize("content", [
    7,
    {"weights.user": torch.zeros(5, 2)},
    {"weights.user": ((5, 2), [((0, 0), 1)])},
    {"weights.user": ((5, 2), [((0,), torch.zeros(5))])},
    {"weights.user": ((5, 2), [((1, 0), torch.zeros(5, 2))])},
    {"weights.user": ((5, 2), [((-1, 0), torch.zeros(5, 2))])},
    {"weights.user": ("52", [((0, 0), torch.zeros(5, 2))])},
])  # fmt: skip
def test_a_file_of_other_things_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / table_files.file_of(0))
    with pytest.raises(ValueError, match=r"tables-0\.pt: not a file of tables"):
        table_files.read_whole(tmp_path)


class Sharded:
    """A tensor that a process holds in parts, as TorchRec's tables are one."""

    def __init__(self, whole: Tensor, blocks: list[tuple[slice, slice]]) -> None:
        self.size = whole.size
        self._shards = [
            SimpleNamespace(
                tensor=whole[block].clone(), metadata=SimpleNamespace(shard_offsets=[s.start for s in block])
            )
            for block in blocks
        ]

    def local_shards(self) -> list[SimpleNamespace]:
        return self._shards


def blocks_of(rows: list[int], columns: list[int]) -> list[tuple[slice, slice]]:
    """The blocks between so many cuts."""
    return [
        (slice(top, bottom), slice(left, right))
        for top, bottom in itertools.pairwise([0, *rows, 100])
        for left, right in itertools.pairwise([0, *columns, 6])
    ]


@pytest.mark.parametrize("cuts", [([], []), ([30, 60], []), ([], [2, 4]), ([17], [1, 5])])
def test_tables_are_read_in_any_other_parts(tmp_path: Path, cuts: tuple[list[int], list[int]]) -> None:
    whole = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    blocks = blocks_of([50], [3])
    for process in range(2):  # two blocks each
        own = Sharded(whole, blocks[process::2])
        parts = table_files.own_parts({"user": own, "bias": torch.arange(3.0)}, is_first=process == 0)
        table_files.write(tmp_path / table_files.file_of(process), parts)
    target = Sharded(torch.zeros(100, 6), blocks_of(*cuts))
    table_files.read(tmp_path, {"user": target})
    for shard, block in zip(target.local_shards(), blocks_of(*cuts), strict=True):
        assert torch.equal(shard.tensor, whole[block])
    assert torch.equal(table_files.read_whole(tmp_path)["user"], whole)
    assert torch.equal(table_files.read_whole(tmp_path)["bias"], torch.arange(3.0))
    (tmp_path / table_files.file_of(1)).unlink()
    with pytest.raises(ValueError, match=r"holds 300 of 600 numbers of table 'user'"):
        table_files.read_whole(tmp_path)


def test_a_table_of_another_shape_or_name_is_named(saved: Checkpoints, tmp_path: Path) -> None:
    save(saved, 1)
    folder = tmp_path / FOLDER / LAST_LINK
    with pytest.raises(ValueError, match=r"table 'weights.user' has shape \(5, 2\) there, \(6, 2\) here"):
        table_files.read(folder, tables(1, rows=6))
    with pytest.raises(ValueError, match=r"holds no table 'weights\.item'"):
        table_files.read(folder, {"weights.item": torch.zeros(1)})


def test_a_checkpoint_that_another_network_wrote_is_refused(tmp_path: Path) -> None:
    write_feed(tmp_path / "data", 300)
    run = train(TrainingConfig.load(training_file(tmp_path, epochs=1)), show=False)
    wider = training_file(tmp_path, network={"fusion": {"kind": "adatt_sp", "levels": [9], "experts_per_task": 1}})
    other = train(TrainingConfig.load(wider, [f"output={tmp_path}/other", "epochs=1"]), show=False)
    shutil.rmtree(run.path / FOLDER)
    shutil.copytree(other.path / FOLDER, run.path / FOLDER, symlinks=True)
    with pytest.raises(ValueError, match=r"checkpoints/00000000\d+: does not fit this run"):
        train(run.config, show=False)
    with pytest.raises(ValueError, match="has the weights of another network"):
        Run.open(run.path).best_ranker()
