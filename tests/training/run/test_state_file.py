"""Checkpoints: round trips, and damage, foreign files, code and full disks refused by name."""

import errno
import hashlib
import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training_data import assert_same_state, small_disk
from training.run import state_file

STATE: dict[str, Any] = {
    "weights": {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(True)},
    "list": [1, 2.5, "text", None, float("inf")],
    "empty": {},
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "last.pt"
    state_file.save(path, STATE)
    return path


def test_what_is_saved_is_loaded(saved: Path) -> None:
    assert_same_state(state_file.load(saved), STATE)


def test_what_a_gpu_saved_is_loaded_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        state_file.save(tmp_path / "last.pt", STATE)
    loaded = state_file.load(tmp_path / "last.pt")
    assert_same_state(loaded, STATE)
    assert loaded["weights"]["a"].device.type == "cpu"


def test_a_second_save_replaces_the_first_and_leaves_nothing_beside_it(saved: Path) -> None:
    state_file.save(saved, {"step": 2})
    assert state_file.load(saved) == {"step": 2}
    assert [path.name for path in saved.parent.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("place", [30, 60, 70, 300, -1])
def test_a_flipped_byte_is_found(saved: Path, place: int) -> None:
    content = bytearray(saved.read_bytes())
    content[place] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.pt: the checkpoint is damaged"):
        state_file.load(saved)


@pytest.mark.parametrize("keep", [0, 5, 22, 60, 62, 200, -1])
def test_a_truncated_file_is_refused(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"last\.pt: "):
        state_file.load(saved)


def test_bytes_after_the_end_are_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"more")
    with pytest.raises(ValueError, match="damaged"):
        state_file.load(saved)


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match=r"foreign\.pt: not a checkpoint of this version"):
        state_file.load(tmp_path / "foreign.pt")


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.pt: the checkpoint cannot be read"):
        state_file.load(tmp_path / "absent.pt")


class _Code:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


def _forged(body: bytes, template: Path) -> bytes:
    magic = template.read_bytes().split(b"\n", 1)[0] + b"\n"
    return magic + hashlib.sha256(body).digest() + struct.pack("<Q", len(body)) + body


def test_code_under_a_good_checksum_is_refused_and_does_not_run(saved: Path, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    buffer = io.BytesIO()
    torch.save({"step": _Code(proof)}, buffer)
    for body in (buffer.getvalue(), pickle.dumps(_Code(proof), protocol=2), b"nonsense", b""):
        saved.write_bytes(_forged(body, saved))
        with pytest.raises(ValueError, match=r"last\.pt: "):
            state_file.load(saved)
    assert not proof.exists()


def test_a_checkpoint_that_is_no_mapping_is_refused(saved: Path) -> None:
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    saved.write_bytes(_forged(buffer.getvalue(), saved))
    with pytest.raises(ValueError, match=r"last\.pt: not a checkpoint of a training run"):
        state_file.load(saved)


def test_a_failing_disk_keeps_the_checkpoint_before(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"last\.pt: cannot be written \(No space left on device\)"):
        state_file.save(saved, {"step": 2})
    monkeypatch.undo()
    assert_same_state(state_file.load(saved), STATE)
    assert [path.name for path in saved.parent.iterdir()] == ["last.pt"]


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 256) as disk:
        path = disk / "last.pt"
        state_file.save(path, STATE)
        with pytest.raises(ValueError, match=r"No space left on device.*what was saved before is kept"):
            state_file.save(path, {"large": torch.zeros(100_000)})
        assert_same_state(state_file.load(path), STATE)
        assert [entry.name for entry in disk.iterdir()] == ["last.pt"]
