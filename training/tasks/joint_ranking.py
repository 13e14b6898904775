"""Joint ranking and calibration: a loss that compares the rows of a request, beside the one that calibrates.

X.-R. Sheng, J. Gao, Y. Cheng, S. Yang, S. Han, H. Deng, Y. Jiang, J. Xu, B. Zheng, "Joint Optimization of Ranking and
Calibration with Contextualized Hybrid Model", KDD 2023. The model has a logit f_y for either label y.
Answers come from their difference, sigmoid(f_1 - f_0), and cross entropy learns it. The other term is the probability
of a row among its request's rows given its label: -log(exp f_y(x) / sum_x' exp f_y(x')), with y the row's own label.
Both are of one density p(x, y), so that the second need not spoil what the first calibrates, as a loss on a single
logit would.

Here f_0 is the tower's base logit and f_1 that and the logit, which is the same model in other coordinates. The
publication weighs the terms a and 1 - a. Here cross entropy has weight 1 and this one `jrc.weight`, (1 - a) / a.

Shapes: B rows, J tasks with the term, T tasks, O outputs, G groups.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.tasks import BinaryTask
from model.tasks.task import BaseTask


class JointTerms(nn.Module):
    """The terms of a run's tasks. `tasks` are the places of those that have one, and `outputs` those of their
    logits."""

    weights_JT: Tensor

    def __init__(self, tasks: Sequence[BaseTask]) -> None:
        super().__init__()
        self.tasks = [place for place, task in enumerate(tasks) if task.has_base_logit]
        self.outputs = [sum(len(task.outputs) for task in tasks[:place]) for place in self.tasks]
        weights_JT = torch.zeros(len(self.tasks), len(tasks))
        for row, place in enumerate(self.tasks):
            task = tasks[place]
            assert isinstance(task, BinaryTask)
            assert task.jrc is not None
            weights_JT[row, place] = task.jrc.weight
        self.register_buffer("weights_JT", weights_JT, persistent=False)

    def forward(
        self, logits_BO: Tensor, bases_BJ: Tensor, targets_BT: Tensor, observed_BT: Tensor, groups_B: Tensor
    ) -> Tensor:
        """losses_BT of single rows, 0 for tasks without the term. `groups_B` are codes below B."""
        is_observed_BJ = observed_BT[:, self.tasks] > 0
        positive_BJ = bases_BJ + logits_BO[:, self.outputs]
        losses_BJ = torch.where(
            targets_BT[:, self.tasks] > 0,
            _surprise(positive_BJ, is_observed_BJ, groups_B),
            _surprise(bases_BJ, is_observed_BJ, groups_B),
        )
        return torch.where(is_observed_BJ, losses_BJ, 0.0) @ self.weights_JT


def _surprise(logits_BJ: Tensor, is_observed_BJ: Tensor, groups_B: Tensor) -> Tensor:
    """-log of each row's share in its group's sum of exp(logit), over the observed rows."""
    groups_BJ = groups_B.unsqueeze(1).expand_as(logits_BJ)
    # Rows that are not observed add exp(-inf) = 0.
    seen_BJ = logits_BJ.masked_fill(~is_observed_BJ, -torch.inf)
    with torch.no_grad():
        # As many groups as rows: codes need not be counted, which on a GPU would wait for it.
        most_GJ = torch.full_like(logits_BJ, -torch.inf).scatter_reduce(0, groups_BJ, seen_BJ, "amax")
        most_GJ = torch.where(torch.isfinite(most_GJ), most_GJ, 0.0)
    grown_BJ = torch.exp(seen_BJ - most_GJ.gather(0, groups_BJ))
    sums_GJ = torch.zeros_like(logits_BJ).scatter_add(0, groups_BJ, grown_BJ)
    # Of a group without an observed row nothing is read.
    logs_GJ = torch.log(torch.where(sums_GJ > 0, sums_GJ, 1.0)) + most_GJ
    return logs_GJ.gather(0, groups_BJ) - logits_BJ
