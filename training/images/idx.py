"""Fashion-MNIST's files: the idx format, plain or gzip-compressed, as published.

In: a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the two of t10k (each also with .gz). Out: pixels
and labels. An idx file is big-endian: 2 zero bytes, the type (8: unsigned byte), the number of dimensions, a 4-byte
size for each, then the values. Raises ValueError naming the file and the place.

Shapes: N images, H by W pixels.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

UNSIGNED_BYTE = 8
# The published files have 47 MB. Beyond this a size in a header is damage, not data.
MAX_BYTES = 1 << 30
CHUNK = 1 << 20
NUM_CLASSES = 10


def read_fashion_mnist(folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """images_NHW and class_N of `part` (train or t10k)."""
    images_path, labels_path = (_existing(folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    images_NHW, class_N = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images_NHW) != len(class_N):
        raise ValueError(f"{labels_path}: {len(class_N)} labels, but {images_path.name} has {len(images_NHW)} images")
    wrong = np.flatnonzero(class_N >= NUM_CLASSES)
    if len(wrong):
        raise ValueError(f"{labels_path}: label {class_N[wrong[0]]} at row {wrong[0]}; classes are 0 to 9")
    return images_NHW, class_N.astype(np.int64)


def read_idx(path: Path, num_dimensions: int) -> NDArray[np.uint8]:
    """The array of an idx file of unsigned bytes with that many dimensions."""
    try:
        with path.open("rb") as raw:
            is_compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if is_compressed:
                with gzip.open(raw) as file:
                    return _parse(file, path, num_dimensions)
            if path.suffix == ".gz":
                raise ValueError(f"{path}: is not compressed by gzip, though its name says so")
            return _parse(raw, path, num_dimensions)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); fetch the file again") from None


def _parse(file: BinaryIO | gzip.GzipFile, path: Path, num_dimensions: int) -> NDArray[np.uint8]:
    head = file.read(4 + 4 * num_dimensions)
    magic = bytes((0, 0, UNSIGNED_BYTE, num_dimensions))
    if head[:4] != magic:
        raise ValueError(f"{path}: starts with {head[:4].hex()}, expected {magic.hex()} (idx{num_dimensions}-ubyte)")
    if len(head) < 4 + 4 * num_dimensions:
        raise ValueError(f"{path}: ends within its header, at byte {len(head)}; fetch the file again")
    sizes = struct.unpack(f">{num_dimensions}I", head[4:])
    expected = math.prod(sizes)
    if not 0 < expected <= MAX_BYTES:
        shown = " x ".join(map(str, sizes))
        raise ValueError(f"{path}: its header says {shown} bytes; from 1 to {MAX_BYTES} are read")
    values = bytearray()
    # By chunks: a header that promises more than there is must not cost its memory.
    while len(values) < expected and (chunk := file.read(min(CHUNK, expected - len(values)))):
        values += chunk
    if len(values) < expected:
        raise ValueError(f"{path}: ends after {len(values)} of {expected} values; fetch the file again")
    if file.read(1):
        raise ValueError(f"{path}: goes on after the {expected} values that its header says; fetch the file again")
    return np.frombuffer(values, np.uint8).reshape(sizes)


def _existing(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise ValueError(f"{folder / name}: not found, nor {name}.gz; data.path names the folder of the published files")
