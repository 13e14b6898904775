"""Logits along chains of tasks, as a module. TorchScript reads it.

A tower of a task that is given another has the logit of its conditional probability. What leaves the network are logits
of unconditional ones, so that losses, metrics, calibration and answers need to know nothing of chains.

Shapes: B rows, O outputs of all tasks.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from model.tasks.given import in_order


def product_logit(given_B: Tensor, conditional_B: Tensor) -> Tensor:
    """Logit of sigmoid(given) * sigmoid(conditional): no overflow, and no cancellation in 1 - p at either end.

    With x and y for the two, 1 / p - 1 = (1 + e^-x)(1 + e^-y) - 1 = e^-x + e^-y + e^(-x - y), and its logarithm is the
    logit of p with the other sign. A sum of three exponentials has no difference in it."""
    both_B = torch.logaddexp(-given_B, -conditional_B)
    return -torch.logaddexp(both_B, -given_B - conditional_B)


class Chains(nn.Module):
    """Towers' logits_BO -> logits_BO of unconditional probabilities."""

    # Annotated here, for TorchScript cannot infer the type of an empty list.
    steps: list[tuple[int, int]]

    def __init__(self, given: Sequence[int | None], output_counts: Sequence[int]) -> None:
        """`given` has by task the place of the one that it is given (model/tasks/given.py), or is empty. A task of a
        chain has one output."""
        super().__init__()
        starts = [0, *accumulate(output_counts)]
        # Column of a task and of the one that it is given, which comes before it.
        self.steps = [(starts[task], starts[other]) for task, other in in_order(given)]

    def forward(self, logits_BO: Tensor) -> Tensor:
        """logits_BO."""
        if len(self.steps) == 0:
            return logits_BO
        # 8 bits of mantissa, of an autocast, are too few for what is multiplied on.
        if logits_BO.dtype == torch.bfloat16:
            logits_BO = logits_BO.float()
        columns = list(logits_BO.unbind(1))
        for column, given in self.steps:
            columns[column] = product_logit(columns[given], columns[column])
        return torch.stack(columns, dim=1)
