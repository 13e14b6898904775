"""Pixels as the network reads them: from 0 to 1, then standardised channel by channel by the training images.

Shapes: N images, B rows, C channels, H by W pixels, R rows of a split.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

from training.images.tasks import ImageTasks, TaskRows


class Pixels:
    """Keeps the images of all splits on `device`. `fingerprint` names the rows and pixels of an experiment."""

    def __init__(self, tasks: ImageTasks, device: torch.device) -> None:
        self.device = device
        splits = (tasks.train, tasks.validation, tasks.test)
        # Train and validation rows point into one array: it is moved once.
        self._images = {id(rows.images_NCHW): rows.images_NCHW.to(device) for rows in splits}
        used_NCHW = tasks.train.images_NCHW[torch.from_numpy(np.unique(tasks.train.image_R.numpy()))]
        # Counts of the 256 values: exact, and no copy of the images as floats.
        values = torch.arange(256, dtype=torch.float64) / 255
        means, deviations = [], []
        for channel in range(used_NCHW.shape[1]):
            counts = torch.bincount(used_NCHW[:, channel].flatten(), minlength=256).double()
            share = counts / counts.sum()
            mean = (share * values).sum()
            means.append(mean)
            deviations.append((share * (values - mean).square()).sum().sqrt())
        self._mean_C11 = torch.stack(means).float().view(-1, 1, 1).to(device)
        # A channel of one value carries nothing. Its 0 / 0 would.
        self._deviation_C11 = torch.stack(deviations).clamp(min=1 / 255).float().view(-1, 1, 1).to(device)
        digest = hashlib.sha256()
        for rows in splits:
            for part in (rows.images_NCHW, rows.image_R, rows.task_R, rows.label_R):
                digest.update(part.numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def take_rows(self, rows: TaskRows, chosen_B: Tensor) -> Tensor:
        """images_BCHW of the chosen rows, from 0 to 1."""
        images = self._images[id(rows.images_NCHW)]
        return images[rows.image_R[chosen_B].to(self.device)].float() / 255

    def standardised(self, images_BCHW: Tensor) -> Tensor:
        """The images less the training images' mean, over their standard deviation."""
        return (images_BCHW - self._mean_C11) / self._deviation_C11
