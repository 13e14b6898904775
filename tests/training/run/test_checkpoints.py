"""A run's checkpoint folders: found again, pruned, verified, refused by name; a full disk and a forged index."""

import copy
import io
import logging
import os
import pickle
import shutil
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata

from tests.training_data import files_of, saved_state, small_disk, training_file, write_feed
from training.config import TrainingConfig
from training.distributed.ranks import ALONE
from training.run import state_file, table_files
from training.run.checkpoints import BEST_LINK, FOLDER, LAST_LINK, MANIFEST, STATE, Checkpoints, verified
from training.run.run import LAST, Run
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


@pytest.mark.parametrize("name", [STATE, MANIFEST, "__0_0.distcp", ".metadata"])
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


def test_code_in_an_index_is_refused_and_does_not_run(saved: Checkpoints, tmp_path: Path) -> None:
    save(saved, 1)
    proof = tmp_path / "ran"
    index = tmp_path / FOLDER / LAST_LINK / table_files.INDEX
    for content in (pickle.dumps(_Code(proof)), b"nonsense", b"", pickle.dumps({"a": 1})):
        index.write_bytes(content)
        with pytest.raises(ValueError, match=r"\.metadata: not an index of tables"):
            table_files.read_whole(index.parent)
    assert not proof.exists()


def test_an_index_of_other_things_or_of_other_folders_is_refused(saved: Checkpoints, tmp_path: Path) -> None:
    save(saved, 1)
    index = tmp_path / FOLDER / LAST_LINK / table_files.INDEX
    whole = pickle.loads(index.read_bytes())
    elsewhere, others = copy.deepcopy(whole), copy.deepcopy(whole)
    for place in elsewhere.storage_data.values():
        place.relative_path = f"../{place.relative_path}"
    others.state_dict_metadata = dict.fromkeys(others.state_dict_metadata, 1)
    for wrong, said in (
        (elsewhere, "a part lies in another folder"),
        (others, "an entry is no tensor"),
        (7, "got int"),
    ):
        index.write_bytes(pickle.dumps(wrong))
        with pytest.raises(ValueError, match=rf"\.metadata: not an index of tables \(.*{said}"):
            table_files.read_whole(index.parent)


class _OlderPickler(pickle.Pickler):
    """Writes a member of an enumeration as Pythons before 3.11.4 do."""

    def reducer_override(self, one: Any) -> Any:
        return (getattr, (type(one), one.name)) if isinstance(one, Enum) else NotImplemented


class _Got:
    """What getattr would reach further than to a member."""

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (Metadata, "__init__")


def test_an_index_that_an_older_python_wrote_is_read_and_reaches_no_further(saved: Checkpoints, tmp_path: Path) -> None:
    save(saved, 1)
    folder = tmp_path / FOLDER / LAST_LINK
    index = folder / table_files.INDEX
    with io.BytesIO() as content:
        _OlderPickler(content).dump(pickle.loads(index.read_bytes()))
        index.write_bytes(content.getvalue())
    assert b"getattr" in index.read_bytes()
    read = table_files.read_whole(folder)
    assert all(torch.equal(read[name], tensor) for name, tensor in tables(1).items())
    index.write_bytes(pickle.dumps(_Got()))
    with pytest.raises(ValueError, match="getattr of anything but an encoding"):
        table_files.read_whole(folder)


def test_a_table_of_another_shape_or_name_is_named(saved: Checkpoints, tmp_path: Path) -> None:
    save(saved, 1)
    folder = tmp_path / FOLDER / LAST_LINK
    with pytest.raises(ValueError, match=r"table 'weights.user' has shape \(5, 2\) there, \(6, 2\) here"):
        table_files.read(folder, tables(1, rows=6), None)
    with pytest.raises(ValueError, match=r"holds no table 'weights\.item'"):
        table_files.read(folder, {"weights.item": torch.zeros(1)}, None)


def test_a_run_of_an_earlier_version_is_still_read_and_not_resumed(finished_run: Run, tmp_path: Path) -> None:
    old = Path(shutil.copytree(finished_run.path, tmp_path / "old", symlinks=True))
    state = saved_state(old / LAST)
    shutil.rmtree(old / FOLDER)
    state_file.save(old / FOLDER / "last.pt", state)
    state_file.save(old / FOLDER / "best.pt", state)
    weights = Run.open(old).best_ranker().state_dict()
    assert all(torch.equal(weights[name], value) for name, value in state["ranker"].items())
    config = finished_run.config.model_copy(update={"output": old})
    with pytest.raises(ValueError, match=r"last\.pt: a checkpoint of an earlier version, .* not resume"):
        train(config, show=False)


def test_a_checkpoint_that_another_network_wrote_is_refused(tmp_path: Path) -> None:
    write_feed(tmp_path / "data", 300)
    run = train(TrainingConfig.load(training_file(tmp_path, epochs=1)), show=False)
    wider = training_file(tmp_path, network={"fusion": {"kind": "adatt_sp", "levels": [9], "experts_per_task": 1}})
    other = train(TrainingConfig.load(wider, [f"output={tmp_path}/other", "epochs=1"]), show=False)
    shutil.rmtree(run.path / FOLDER)
    shutil.copytree(other.path / FOLDER, run.path / FOLDER, symlinks=True)
    with pytest.raises(ValueError, match=r"checkpoints/00000000\d+: does not fit this run"):
        train(run.config, show=False)
    with pytest.raises(ValueError, match="holds the weights of another network"):
        Run.open(run.path).best_ranker()
