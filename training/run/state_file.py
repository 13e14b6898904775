"""Checkpoints: one file each, written beside the run, visible only when whole.

A checkpoint is a dictionary of tensors and plain values under a checksum. It is read with `weights_only`, so a file
from elsewhere cannot run code. Raises ValueError naming the file where it is damaged or of another kind.
"""

import hashlib
import io
import struct
from pathlib import Path
from typing import Any

import torch

from model.untrusted_files import read_bytes
from training.files import replace_file

_MAGIC = b"feedrank-checkpoint-1\n"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` and replace `path` in one step. A crash leaves the old file."""
    replace_file(path, encoded(state))


def encoded(state: dict[str, Any]) -> tuple[bytes, memoryview]:
    """The content of a checkpoint's file, a copy of `state`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    return _MAGIC + hashlib.sha256(content).digest() + struct.pack("<Q", len(content)), content


def load(path: Path) -> dict[str, Any]:
    """The state of a checkpoint. Raises ValueError naming the file."""
    try:
        content = read_bytes(path, None)
    except OSError as error:
        raise ValueError(f"{path}: the checkpoint cannot be read ({error.strerror})") from None
    start = len(_MAGIC) + 32 + 8
    if not content.startswith(_MAGIC) or len(content) < start:
        raise ValueError(f"{path}: not a checkpoint of this version of feedrank")
    digest, body = content[len(_MAGIC) : len(_MAGIC) + 32], content[start:]
    length = struct.unpack("<Q", content[start - 8 : start])[0]
    if len(body) != length or hashlib.sha256(body).digest() != digest:
        raise ValueError(f"{path}: the checkpoint is damaged (its checksum does not match)")
    try:
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception:  # a forged body can make the unpickler stop anywhere
        raise ValueError(
            f"{path}: contains more than tensors and plain values; a checkpoint of feedrank does not"
        ) from None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: not a checkpoint of a training run")
    return state
