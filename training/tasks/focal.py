"""Focal losses beside cross entropies: rows that are answered well already count less.

T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollar, "Focal Loss for Dense Object Detection", ICCV 2017, equations 4 and
5. With q the probability of a row's own label the term is -alpha (1 - q)^gamma log q. Its best answer is no mean of
labels: it lies nearer to 1/2 (Charoenphakdee et al., CVPR 2021). So it is a term beside cross entropy, and never
stands alone.

Shapes: B rows, O outputs and T tasks, one output a task.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.tasks.binary import FocalTerm


class FocalLosses(nn.Module):
    """Cross entropies, with the focal losses of the tasks that have one: logits_BO, targets_BT -> losses_BT."""

    gammas_T: Tensor
    negative_T: Tensor
    positive_T: Tensor
    offsets_T: Tensor

    def __init__(self, entropies: nn.Module, terms: Sequence[FocalTerm | None], offsets: Sequence[float]) -> None:
        """`offsets` are added to logits, as in cross entropy."""
        super().__init__()
        self.entropies = entropies
        values = {
            "gammas_T": [0.0 if term is None else term.gamma for term in terms],
            "negative_T": [0.0 if term is None else term.weight * (1 - _alpha(term, 0.0)) for term in terms],
            "positive_T": [0.0 if term is None else term.weight * _alpha(term, 1.0) for term in terms],
            "offsets_T": list(offsets),
        }
        for name, value_T in values.items():
            self.register_buffer(name, torch.tensor(value_T), persistent=False)

    def forward(self, logits_BO: Tensor, targets_BT: Tensor) -> Tensor:
        """losses_BT."""
        own_BT = (logits_BO + self.offsets_T) * (2.0 * targets_BT - 1.0)
        # (1 - q)^gamma by the sigmoid's logarithm: where q rounds to 1 the power of 1 - q has no finite slope for
        # gamma < 1.
        factors_BT = torch.exp(self.gammas_T * functional.logsigmoid(-own_BT))
        weights_BT = torch.where(targets_BT > 0, self.positive_T, self.negative_T)
        entropies_BT: Tensor = self.entropies(logits_BO, targets_BT)
        return entropies_BT - weights_BT * factors_BT * functional.logsigmoid(own_BT)


def _alpha(term: FocalTerm, without: float) -> float:
    return without if term.alpha is None else term.alpha
