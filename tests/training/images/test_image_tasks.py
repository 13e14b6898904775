"""Tasks made of images: the paper's counts, nothing on both sides of a split, labels that mean what they should."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.images.files import cifar_rows, idx_bytes, write_cifar, write_fashion
from training.images.augment import AugmentationConfig, augment
from training.images.idx import read_fashion_mnist
from training.images.pixels import Pixels
from training.images.tasks import ImageDataConfig, ImageTasks, TaskRows


def fashion(folder: Path, **changes: object) -> ImageTasks:
    return ImageDataConfig.from_mapping({"kind": "fashion_mnist", "path": str(folder), **changes}, "data").read()


def cifar(folder: Path, **changes: object) -> ImageTasks:
    return ImageDataConfig.from_mapping({"kind": "cifar100", "path": str(folder), **changes}, "data").read()


def counts(rows: TaskRows) -> Counter[tuple[int, int]]:
    """Rows of each (task, label)."""
    return Counter(zip(rows.task_R.tolist(), rows.label_R.tolist(), strict=True))


def test_fashion_rows_are_all_of_the_class_and_a_tenth_of_each_other(tmp_path: Path) -> None:
    folder = write_fashion(tmp_path, (30, 10))
    tasks = fashion(folder, validation=0)
    _, class_N = read_fashion_mnist(folder, "train")
    # As the paper: 6,000 and 600 of each of the nine others become 30 and 3. Of the test file 10 and 1.
    assert counts(tasks.train) == {(task, label): (30 if label else 27) for task in range(10) for label in range(2)}
    assert counts(tasks.test) == {(task, label): (10 if label else 9) for task in range(10) for label in range(2)}
    assert len(tasks.validation) == 0
    drawn: Counter[tuple[int, int]] = Counter()
    for image, task, label in zip(tasks.train.image_R, tasks.train.task_R, tasks.train.label_R, strict=True):
        assert label == (class_N[image] == task)
        drawn[int(task), int(class_N[image])] += 1
    assert drawn == {(task, other): (30 if other == task else 3) for task in range(10) for other in range(10)}
    # Each task draws its own negatives: of 30 images nine tasks take 3 each, and not always the same.
    negatives = tasks.train.image_R[(tasks.train.label_R == 0) & torch.from_numpy(class_N == 0)[tasks.train.image_R]]
    assert len(set(negatives.tolist())) > 9


def test_validation_takes_whole_images_of_every_class(tmp_path: Path) -> None:
    folder = write_fashion(tmp_path, (40, 10))
    tasks = fashion(folder, validation=0.25)
    assert counts(tasks.train) == {(task, label): (30 if label else 27) for task in range(10) for label in range(2)}
    assert counts(tasks.validation) == {(task, label): (10 if label else 9) for task in range(10) for label in range(2)}
    assert not set(tasks.train.image_R.tolist()) & set(tasks.validation.image_R.tolist())
    again, other = fashion(folder, validation=0.25), fashion(folder, validation=0.25, seed=1)
    torch.testing.assert_close(tasks.train.image_R, again.train.image_R, rtol=0, atol=0)
    assert tasks.validation.image_R.tolist() != other.validation.image_R.tolist()


def test_cifar_rows_belong_to_their_superclass(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, (4, 2))
    tasks = cifar(folder, validation=0.25)
    raw = cifar_rows(4, 0)
    assert (len(tasks.train), len(tasks.validation), len(tasks.test)) == (300, 100, 200)
    assert counts(tasks.train) == {(task, label): 3 for task in range(20) for label in range(5)}
    assert counts(tasks.validation) == {(task, label): 1 for task in range(20) for label in range(5)}
    for rows in (tasks.train, tasks.validation):
        for image, task, label in zip(rows.image_R.tolist(), rows.task_R.tolist(), rows.label_R.tolist(), strict=True):
            # The file's classes of superclass s are s, s + 20, ..., s + 80: label l is class s + 20 l.
            assert (raw[image, 0], raw[image, 1]) == (task, task + 20 * label)
    assert not set(tasks.train.image_R.tolist()) & set(tasks.validation.image_R.tolist())


def test_classes_must_keep_to_their_superclass(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, (4, 2))
    test = cifar_rows(2, 1)
    test[17, 0] = (test[17, 1] + 1) % 20
    (folder / "test.bin").write_bytes(test.tobytes())
    with pytest.raises(ValueError, match=r"test\.bin: row 17: class"):
        cifar(folder)
    train = cifar_rows(4, 0)
    (folder / "train.bin").write_bytes(train[train[:, 1] != 40].tobytes())
    with pytest.raises(ValueError, match="superclass 0 has 4 classes"):
        cifar(folder)


def test_a_task_without_a_class_is_named(tmp_path: Path) -> None:
    folder = write_fashion(tmp_path)
    images, class_N = read_fashion_mnist(folder, "train")
    kept = class_N != 3
    (folder / "train-images-idx3-ubyte.gz").unlink()
    (folder / "train-images-idx3-ubyte").write_bytes(idx_bytes(images[kept]))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(class_N[kept].astype(np.uint8)))
    with pytest.raises(ValueError, match="task 'dress' has 1 of its 2 classes in the train rows"):
        fashion(folder)


def test_pixels_are_standardised_by_the_training_images_alone(tmp_path: Path) -> None:
    tasks = cifar(write_cifar(tmp_path), validation=0.25)
    pixels = Pixels(tasks, torch.device("cpu"))
    every = torch.arange(len(tasks.train))
    images = pixels.standardised(pixels.take_rows(tasks.train, every)).double()
    # float32 sums of 300,000 values.
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(images.std(dim=(0, 2, 3), correction=0), torch.ones(3).double(), rtol=0, atol=1e-5)


def cropped(image_CHW: Tensor, down: int, right: int, padding: int) -> Tensor:
    """A window of the zero-padded image."""
    padded = torch.nn.functional.pad(image_CHW, (padding,) * 4)
    height, width = image_CHW.shape[1:]
    return padded[:, padding + down : padding + down + height, padding + right : padding + right + width]


def test_each_image_is_one_of_the_possible_crops_or_mirrored() -> None:
    generator = torch.Generator().manual_seed(0)
    images_BCHW = torch.rand(200, 2, 6, 8, generator=generator)
    config = AugmentationConfig(padding=2, flip=True, rotation_degrees=0)
    changed = augment(images_BCHW, config, torch.Generator().manual_seed(1))
    seen: Counter[tuple[bool, int, int]] = Counter()
    for before, after in zip(images_BCHW, changed, strict=True):
        for mirrored in (False, True):
            source = before.flip(2) if mirrored else before
            for down in range(-2, 3):
                for right in range(-2, 3):
                    # A mirrored window shifts the other way. Bilinear weights at whole pixels are exact to float32.
                    if torch.allclose(after, cropped(source, down, right, 2), atol=1e-4):
                        seen[mirrored, down, right] += 1
    assert sum(seen.values()) == 200
    # 50 kinds, each expected 4 times: one that cannot be drawn would leave more than these few empty.
    assert len(seen) > 40
    # 200 draws of a fair coin: 100 +- 50 is more than 7 standard deviations.
    assert 50 < sum(count for (mirrored, _, _), count in seen.items() if mirrored) < 150


def test_rotation_turns_about_the_middle() -> None:
    image = torch.zeros(1, 1, 41, 61)
    image[..., 18:23, 28:33] = 1.0  # in the middle: stays
    image[..., 18:23, 50:55] = 1.0  # 22 pixels to the right: goes round
    config = AugmentationConfig(padding=0, flip=False, rotation_degrees=20)
    rows, columns = torch.meshgrid(torch.arange(41) - 20.0, torch.arange(61) - 30.0, indexing="ij")
    for seed in range(5):
        turned = augment(image, config, torch.Generator().manual_seed(seed))[0, 0]
        assert turned[19:22, 29:32].min() > 0.9
        far = turned * (columns > 10)
        x, y = ((far * axis).sum() / far.sum() for axis in (columns, rows))
        # Half a pixel for the lookup between pixels.
        assert abs(float(torch.hypot(x, y)) - 22) < 0.5
        assert abs(float(torch.rad2deg(torch.atan2(y, x)))) < 21


def test_augmentation_follows_its_seed() -> None:
    images_BCHW = torch.rand(8, 1, 10, 10)
    first, again, other = (
        augment(images_BCHW, AugmentationConfig(), torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
