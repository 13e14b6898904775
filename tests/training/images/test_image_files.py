"""Reading idx and CIFAR-100 files: what was written comes back, and damage is named with its file and place."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.training.images.files import cifar_rows, idx_bytes, write_fashion
from training.images.cifar import read_cifar100, superclass_names
from training.images.idx import read_fashion_mnist, read_idx

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_idx_file_comes_back(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "images"
    # The format's own bytes: 0 0, type 8, 3 dimensions, sizes from the high byte on.
    path.write_bytes(pack(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, *range(24)])))
    np.testing.assert_array_equal(read_idx(path, 3), ARRAY)


GOOD = idx_bytes(ARRAY)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x", b"", "starts with"),
        ("x", b"\x00\x00\x0d\x03" + GOOD[4:], r"starts with 00000d03, expected 00000803"),
        ("x", idx_bytes(ARRAY[0]), r"expected 00000803 \(idx3"),
        ("x", GOOD[:10], "within its header, at byte 10"),
        ("x", GOOD[:-1], "ends after 23 of 24 values"),
        ("x", GOOD + b"!", "goes on after the 24 values"),
        ("x", struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "its header says 4294967295 x"),
        ("x", struct.pack(">HBB3I", 0, 8, 3, 0, 28, 28), "its header says 0 x 28 x 28"),
        # Promises 1 GiB and holds nothing.
        ("x", struct.pack(">HBB3I", 0, 8, 3, 1024, 1024, 1024), "ends after 0 of 1073741824"),
        ("x.gz", GOOD, "not compressed by gzip"),
        ("x.gz", gzip.compress(GOOD, mtime=0)[:-12], "cannot be read"),
        ("x.gz", gzip.compress(GOOD, mtime=0)[:-5] + b"\x00" * 5, "cannot be read"),
        ("x.gz", b"\x1f\x8b\x08\x00" + b"\xff" * 30, "cannot be read"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        read_idx(tmp_path / name, 3)
    assert str(tmp_path / name) in str(caught.value)


def test_labels_must_fit_images(tmp_path: Path) -> None:
    folder = write_fashion(tmp_path)
    labels = folder / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(7, np.uint8)))
    with pytest.raises(ValueError, match=r"labels-idx1-ubyte: 7 labels, but .* has 200 images"):
        read_fashion_mnist(folder, "train")
    wrong = np.zeros(200, np.uint8)
    wrong[13] = 10
    labels.write_bytes(idx_bytes(wrong))
    with pytest.raises(ValueError, match="label 10 at row 13"):
        read_fashion_mnist(folder, "train")
    labels.unlink()
    with pytest.raises(ValueError, match=r"not found, nor train-labels-idx1-ubyte\.gz"):
        read_fashion_mnist(folder, "train")


def test_cifar_rows_come_back(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    image = np.arange(3072, dtype=np.int64).astype(np.uint8)
    path.write_bytes(bytes([19, 99]) + image.tobytes() + bytes([3, 0]) + bytes(3072))
    found = read_cifar100(path)
    assert found.superclass_N.tolist() == [19, 3]
    assert found.class_N.tolist() == [99, 0]
    # Plane 2 (blue), row 5, column 7 is value 2 * 1024 + 5 * 32 + 7 of an image.
    assert found.images_NCHW.shape == (2, 3, 32, 32)
    assert found.images_NCHW[0, 2, 5, 7] == (2 * 1024 + 5 * 32 + 7) % 256


def test_damaged_cifar_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    rows = cifar_rows(1, 0)
    for content, says in (
        (b"", "0 bytes"),
        (rows.tobytes()[:-1], f"{100 * 3074 - 1} bytes; expected a multiple of 3074"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=says):
            read_cifar100(path)
    byte = 42 * 3074 + 1
    for column, value, says in ((0, 20, "superclass 20 in row 42"), (1, 100, rf"class 100 in row 42 \(byte {byte}\)")):
        wrong = rows.copy()
        wrong[42, column] = value
        path.write_bytes(wrong.tobytes())
        with pytest.raises(ValueError, match=says):
            read_cifar100(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_cifar100(tmp_path / "absent.bin")


def test_superclasses_have_their_published_names(tmp_path: Path) -> None:
    assert superclass_names(tmp_path)[7] == "superclass_7"
    names = [f"name{number}" for number in range(20)]
    (tmp_path / "coarse_label_names.txt").write_text("\n".join(names) + "\n")
    assert superclass_names(tmp_path) == names
    (tmp_path / "coarse_label_names.txt").write_text("\n".join(names[:19]))
    with pytest.raises(ValueError, match="expected 20 different names"):
        superclass_names(tmp_path)
