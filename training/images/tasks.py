"""Image data sets as many tasks ("Re-examining Routing Networks", section 3.1): each row belongs to one task.

In: the published files. Out: `TaskRows` for train, validation and test.
Fashion-MNIST: ten binary tasks, one class against the rest. A task has all images of its class and a tenth of those of
each other one (6,000 and 9 x 600 of the published training file), drawn for each task. CIFAR-100: twenty tasks, one for
each superclass: which of its five classes an image shows. Validation images are taken from the training file, as many
of every class, before rows are made of them: no image is on both sides.

Shapes: N images, C channels, H by W pixels, R rows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from model.strict_yaml import StrictModel
from training.images.cifar import NUM_CLASSES, NUM_SUPERCLASSES, read_cifar100, superclass_names
from training.images.idx import read_fashion_mnist

FASHION_CLASSES = ["t_shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot"]
# Of each other class a task has this share of its images: 600 of 6,000.
NEGATIVE_SHARE = 0.1
CLASSES_OF_A_SUPERCLASS = NUM_CLASSES // NUM_SUPERCLASSES

Ints = NDArray[np.int64]


class ImageDataConfig(StrictModel):
    """The published files under `path`. The share `validation` of the training images is held out, as `seed` draws.

    With `validation: 0` all of the training file is trained on, as in the paper, and nothing can be chosen."""

    kind: Literal["fashion_mnist", "cifar100"]
    path: Path
    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    def read(self) -> "ImageTasks":
        """All rows. Raises ValueError naming the file and the fault."""
        return {"fashion_mnist": fashion_mnist, "cifar100": cifar100}[self.kind](self)


@dataclass(frozen=True, slots=True)
class TaskRows:
    """Row r: image `image_R[r]`, whose class among its task's `task_R[r]` is `label_R[r]`. Images are stored once."""

    images_NCHW: Tensor  # uint8
    image_R: Tensor
    task_R: Tensor
    label_R: Tensor

    def __len__(self) -> int:
        return len(self.image_R)


@dataclass(frozen=True, slots=True)
class ImageTasks:
    """The tasks by name, each of `num_classes` classes. `validation` has no rows where none are held out."""

    names: list[str]
    num_classes: int
    train: TaskRows
    validation: TaskRows
    test: TaskRows


def fashion_mnist(config: ImageDataConfig) -> ImageTasks:
    """Ten tasks: label 1 for the task's class, 0 for the others."""
    generator = np.random.default_rng(config.seed)
    train_NHW, train_class_N = read_fashion_mnist(config.path, "train")
    test_NHW, test_class_N = read_fashion_mnist(config.path, "t10k")
    if train_NHW.shape[1:] != test_NHW.shape[1:]:
        raise ValueError(f"{config.path}: images of {train_NHW.shape[1:]} to train on, of {test_NHW.shape[1:]} to test")
    held_out, kept = _split(train_class_N, config.validation, generator)

    train_NCHW, test_NCHW = torch.from_numpy(train_NHW).unsqueeze(1), torch.from_numpy(test_NHW).unsqueeze(1)
    train = one_against_rest(train_NCHW, train_class_N, kept, generator)
    validation = one_against_rest(train_NCHW, train_class_N, held_out, generator)
    test = one_against_rest(test_NCHW, test_class_N, np.arange(len(test_class_N)), generator)
    return _checked(config, ImageTasks(FASHION_CLASSES, 2, train, validation, test))


def one_against_rest(images_NCHW: Tensor, class_N: Ints, chosen: Ints, generator: np.random.Generator) -> TaskRows:
    """Each class' task over the `chosen` images: all of its own, and NEGATIVE_SHARE of each other class."""
    by_class = [chosen[class_N[chosen] == number] for number in range(len(FASHION_CLASSES))]
    image, task, label = [], [], []
    for number in range(len(by_class)):
        for other, members in enumerate(by_class):
            is_own = other == number
            # Rounded to the nearest, so that 6,000 give 600 with any arithmetic.
            taken = members if is_own else generator.permutation(members)[: round(len(members) * NEGATIVE_SHARE)]
            image.append(taken)
            task.append(np.full(len(taken), number))
            label.append(np.full(len(taken), int(is_own)))
    return TaskRows(images_NCHW, *(torch.from_numpy(np.concatenate(part)) for part in (image, task, label)))


def cifar100(config: ImageDataConfig) -> ImageTasks:
    """Twenty tasks of five classes. A task numbers its classes in the order of their published numbers."""
    generator = np.random.default_rng(config.seed)
    train, test = read_cifar100(config.path / "train.bin"), read_cifar100(config.path / "test.bin")
    members = [np.unique(train.class_N[train.superclass_N == number]) for number in range(NUM_SUPERCLASSES)]
    wrong = [number for number, classes in enumerate(members) if len(classes) != CLASSES_OF_A_SUPERCLASS]
    if wrong:
        raise ValueError(
            f"{config.path / 'train.bin'}: superclass {wrong[0]} has {len(members[wrong[0]])} classes, "
            f"expected {CLASSES_OF_A_SUPERCLASS}"
        )
    label_of = np.full((NUM_SUPERCLASSES, NUM_CLASSES), -1)
    for number, classes in enumerate(members):
        label_of[number, classes] = np.arange(CLASSES_OF_A_SUPERCLASS)
    train_label_N = label_of[train.superclass_N, train.class_N]
    test_label_N = label_of[test.superclass_N, test.class_N]
    for path, label_N, data in (("train.bin", train_label_N, train), ("test.bin", test_label_N, test)):
        # A class in two superclasses, or one that training does not have.
        strange = np.flatnonzero((label_N < 0) | ((label_of[:, data.class_N] >= 0).sum(axis=0) != 1))
        if len(strange):
            row = int(strange[0])
            raise ValueError(
                f"{config.path / path}: row {row}: class {data.class_N[row]} in superclass {data.superclass_N[row]}; "
                "in train.bin every class belongs to one superclass, and test.bin must agree"
            )
    held_out, kept = _split(train.class_N, config.validation, generator)
    train_NCHW, test_NCHW = torch.from_numpy(train.images_NCHW), torch.from_numpy(test.images_NCHW)
    return _checked(
        config,
        ImageTasks(
            superclass_names(config.path),
            CLASSES_OF_A_SUPERCLASS,
            _rows(train_NCHW, kept, train.superclass_N, train_label_N),
            _rows(train_NCHW, held_out, train.superclass_N, train_label_N),
            _rows(test_NCHW, np.arange(len(test_label_N)), test.superclass_N, test_label_N),
        ),
    )


def _rows(images_NCHW: Tensor, chosen: Ints, task_N: Ints, label_N: Ints) -> TaskRows:
    parts = (torch.from_numpy(part) for part in (chosen, task_N[chosen], label_N[chosen]))
    return TaskRows(images_NCHW, *parts)


def _split(class_N: Ints, share: float, generator: np.random.Generator) -> tuple[Ints, Ints]:
    """(held out, kept): the images' numbers, with the same share of every class held out."""
    held_out, kept = [], []
    for number in np.unique(class_N):
        members = generator.permutation(np.flatnonzero(class_N == number))
        count = round(len(members) * share)
        held_out.append(members[:count])
        kept.append(members[count:])
    return np.sort(np.concatenate(held_out)), np.sort(np.concatenate(kept))


def _checked(config: ImageDataConfig, tasks: ImageTasks) -> ImageTasks:
    """Raise ValueError where a task lacks a class to learn from, or rows to be measured on."""
    for split, rows in (("train", tasks.train), ("validation", tasks.validation), ("test", tasks.test)):
        if split == "validation" and config.validation == 0:
            continue
        for number, name in enumerate(tasks.names):
            classes = np.unique(rows.label_R[rows.task_R == number].numpy())
            needed = tasks.num_classes if split == "train" else 1
            if len(classes) < needed:
                raise ValueError(
                    f"{config.path}: task '{name}' has {len(classes)} of its {tasks.num_classes} classes in the "
                    f"{split} rows; the files have too few images of a class, or data.validation does not fit them"
                )
    return tasks
