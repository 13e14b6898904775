"""The published files of Fashion-MNIST, as Debian packages them: the tasks that the paper makes of them."""

import numpy as np
import pytest

from benchmarks.image_routing import FASHION_MNIST
from training.images.tasks import FASHION_CLASSES, ImageDataConfig, ImageTasks


@pytest.fixture(scope="module")
def fashion() -> ImageTasks:
    if not FASHION_MNIST.is_dir():
        pytest.skip("the package dataset-fashion-mnist is not installed, Fashion-MNIST was not read")
    return ImageDataConfig(kind="fashion_mnist", path=FASHION_MNIST, validation=0).read()


def test_tasks_have_the_papers_rows(fashion: ImageTasks) -> None:
    """Section 3.1: 6,000 images of a class and 600 of each other one, and a tenth of the numbers to test."""
    assert len(fashion.names) == 10
    for rows, of_class in ((fashion.train, 6000), (fashion.test, 1000)):
        for number in range(10):
            labels = rows.label_R[rows.task_R == number].numpy()
            assert np.bincount(labels).tolist() == [9 * of_class // 10, of_class]
    assert len(fashion.validation) == 0


def test_pixels_show_the_classes(fashion: ImageTasks) -> None:
    """A trouser's columns are dark in the middle below, a bag fills its width. Pixels and labels are those of one row
    where the mean images say so."""
    rows = fashion.train
    means = {}
    for name in ("trouser", "bag"):
        is_own = (rows.task_R == FASHION_CLASSES.index(name)) & (rows.label_R == 1)
        means[name] = rows.images_NCHW[rows.image_R[is_own]].double().mean(dim=(0, 1)).numpy()
    assert means["trouser"].shape == (28, 28)
    # Outer columns of the lower half: nothing of a trouser, much of a bag.
    outer = [0, 1, 2, 3, 24, 25, 26, 27]
    assert means["trouser"][14:, outer].mean() < 5
    assert means["bag"][14:, outer].mean() > 50
