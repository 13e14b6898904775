"""Yes/no outcomes as they are learned: cross entropy of a 0/1 label.

`positive_weight` p of a task counts the loss of its positive rows p times. That alone would inflate the learned odds by
p. So the loss is taken at `logit + log p`: weighted cross entropy there is smallest where the logit itself has the
log's own odds. Everything behind the logit (metrics, answers, value models) needs no correction.

Shapes: B rows, O outputs and T tasks, one output a task.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor, nn
from torch.nn import functional

from model.tasks import BinaryTask
from model.tasks.task import BaseTask
from training.metrics.metrics import normalized_entropy
from training.tasks.learned import Floats, LearnedTask, Mask


class LearnedBinary(LearnedTask):
    """A yes/no outcome."""

    has_right_answers = True
    label_rule = "must be 0 or 1"

    def are_labels(self, labels_B: Floats) -> Mask:
        """Mask of 0 and 1."""
        return np.isin(labels_B, (0.0, 1.0))

    @classmethod
    def losses(cls, tasks: Sequence[BaseTask], offsets: Sequence[float]) -> nn.Module:
        """Cross entropy, by positive weight."""
        return CrossEntropies([task.positive_weight for task in tasks if isinstance(task, BinaryTask)], offsets)

    def log_likelihood(self, logits_BO: Tensor, targets_B: Tensor) -> Tensor:
        """Negative cross entropy, without weights."""
        return -functional.binary_cross_entropy_with_logits(logits_BO[:, 0], targets_B, reduction="none")

    def is_right(self, logits_BO: Tensor, targets_B: Tensor) -> Tensor:
        """Right at the threshold of probability 1/2."""
        return (logits_BO[:, 0] > 0) == (targets_B > 0.5)

    def relative_error(self, logits_BO: Floats, targets_B: Floats) -> float:
        """Normalized entropy."""
        entropy = normalized_entropy(targets_B, expit(logits_BO[:, 0]))
        assert entropy is not None, "both labels are there"
        return entropy


class CrossEntropies(nn.Module):
    """logits_BO, targets_BT -> losses_BT."""

    positive_weights_T: Tensor
    offsets_T: Tensor

    def __init__(self, positive_weights: Sequence[float], offsets: Sequence[float]) -> None:
        super().__init__()
        positive_weights_T = torch.tensor(positive_weights)
        self.register_buffer("positive_weights_T", positive_weights_T, persistent=False)
        self.register_buffer("offsets_T", positive_weights_T.log() + torch.tensor(offsets), persistent=False)
        self._is_plain = bool((self.offsets_T == 0).all() and (positive_weights_T == 1.0).all())

    def forward(self, logits_BO: Tensor, targets_BT: Tensor) -> Tensor:
        """losses_BT."""
        if self._is_plain:
            return functional.binary_cross_entropy_with_logits(logits_BO, targets_BT, reduction="none")
        return functional.binary_cross_entropy_with_logits(
            logits_BO + self.offsets_T, targets_BT, reduction="none", pos_weight=self.positive_weights_T
        )
