"""Small files in the published formats, with images that show their class. Each has a bright square at its class's
place, over noise.

Written here by struct and numpy alone, so that readers are checked against the formats and not against themselves.
"""

import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """An idx file of unsigned bytes."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def patterned(classes: NDArray[np.int64], places: int, side: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """[N, side, side] noise with a bright square at place class modulo `places`, on a grid of 4 columns."""
    images = generator.integers(0, 60, (len(classes), side, side), dtype=np.uint8)
    step = side // 4
    for image, number in zip(images, classes % places, strict=True):
        row, column = divmod(int(number), 4)
        image[row * step : (row + 1) * step, column * step : (column + 1) * step] = 250
    return images


def write_fashion(folder: Path, per_class: tuple[int, int] = (20, 10), side: int = 12) -> Path:
    """The four files of Fashion-MNIST's form, so many images a class to train and to test. Two are compressed."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(5)
    for part, count in zip(("train", "t10k"), per_class, strict=True):
        classes = generator.permutation(np.repeat(np.arange(10), count))
        images = patterned(classes, 10, side, generator)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(classes.astype(np.uint8)))
    return folder


def cifar_rows(per_class: int, seed: int) -> NDArray[np.uint8]:
    """[N, 3074] rows of CIFAR-100's form: class c is in superclass c modulo 20, so a superclass has c, c + 20, ..."""
    generator = np.random.default_rng(seed)
    classes = generator.permutation(np.repeat(np.arange(100), per_class))
    rows = np.zeros((len(classes), 3074), np.uint8)
    rows[:, 0], rows[:, 1] = classes % 20, classes
    # Where the square is tells which of its superclass' classes it is. The planes differ in brightness.
    gray = patterned(classes // 20, 5, 32, generator)
    rows[:, 2:] = np.stack([gray, gray // 2, gray // 4], axis=1).reshape(len(classes), -1)
    return rows


def write_cifar(folder: Path, per_class: tuple[int, int] = (4, 2)) -> Path:
    """train.bin and test.bin, so many images of each of the hundred classes."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate(zip(("train.bin", "test.bin"), per_class, strict=True)):
        (folder / name).write_bytes(cifar_rows(count, seed).tobytes())
    return folder
