"""CIFAR-100's files: the published binary version.

In: a folder with train.bin, test.bin and, where it is there, coarse_label_names.txt. Out: pixels and labels. A row is
3074 bytes: the superclass (coarse label, 0 to 19), the class (fine label, 0 to 99), then 32 x 32 red, green and blue
values, plane by plane. Raises ValueError naming the file and the place.

Shapes: N images, C (3) channels, H by W (32 by 32) pixels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIDE = 32
ROW_BYTES = 2 + 3 * SIDE * SIDE
NUM_SUPERCLASSES, NUM_CLASSES = 20, 100
# The published training file has 154 MB.
MAX_BYTES = 1 << 30
NAMES = "coarse_label_names.txt"


@dataclass(frozen=True, slots=True)
class Cifar100:
    """The rows of a file."""

    images_NCHW: NDArray[np.uint8]
    superclass_N: NDArray[np.int64]
    class_N: NDArray[np.int64]


def read_cifar100(path: Path) -> Cifar100:
    """The rows of train.bin or test.bin."""
    try:
        size = path.stat().st_size
        if not 0 < size <= MAX_BYTES or size % ROW_BYTES:
            raise ValueError(f"{path}: {size} bytes; expected a multiple of {ROW_BYTES}, up to {MAX_BYTES}")
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); data.path names the published folder") from None
    if content.size != size:
        raise ValueError(f"{path}: changed while it was read")
    rows = content.reshape(-1, ROW_BYTES)
    for column, what, count in ((0, "superclass", NUM_SUPERCLASSES), (1, "class", NUM_CLASSES)):
        wrong = np.flatnonzero(rows[:, column] >= count)
        if len(wrong):
            row = int(wrong[0])
            place = f"row {row} (byte {row * ROW_BYTES + column})"
            raise ValueError(f"{path}: {what} {rows[row, column]} in {place}; there are {count}, from 0")
    images_NCHW = rows[:, 2:].reshape(-1, 3, SIDE, SIDE)
    return Cifar100(images_NCHW, rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64))


def superclass_names(folder: Path) -> list[str]:
    """The published names, one a line. Numbers where the file of names is absent."""
    path = folder / NAMES
    if not path.exists():
        return [f"superclass_{number}" for number in range(NUM_SUPERCLASSES)]
    try:
        names = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if len(names) != NUM_SUPERCLASSES or len(set(names)) != len(names):
        raise ValueError(f"{path}: expected {NUM_SUPERCLASSES} different names, one a line, got {len(names)}")
    return names
