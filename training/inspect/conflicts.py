"""Task-gradient conflicts: the cosine between the gradients of two tasks' losses, the mean over batches.

Below 0 a step that helps one task hurts the other. Measured at the shared representation rows_BD, and over the fusion
network's parameters that the gradients of both tasks reach. Nothing is trained: the graph is cut below rows_BD, so no
optimizer that is fused into the tables' backward runs.

Shapes: B rows, D columns of the dense row, T tasks, P values of all parameters, N values of a gradient.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.ranker import Ranker
from training.data.rows import Batch, Rows
from training.step.balancing.losses import TaskLosses

SEED = 0


@dataclass(frozen=True)
class Conflicts:
    """Mean cosines [T, T]. NaN for a pair that no batch compares (no label of a task, or no shared parameter)."""

    tasks: list[str]
    batches: int
    batch_size: int
    at_rows_TT: NDArray[np.float64]
    at_parameters_TT: NDArray[np.float64]

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file, null for NaN."""
        return {
            "tasks": self.tasks,
            "batches": self.batches,
            "batch_size": self.batch_size,
            "at_shared_representation": _nullable(self.at_rows_TT),
            "at_shared_parameters": _nullable(self.at_parameters_TT),
        }


def task_conflicts(
    ranker: Ranker, rows: Rows, losses: TaskLosses, tasks: list[str], *, batch_size: int, num_batches: int
) -> Conflicts:
    """Conflicts over at most `num_batches` batches of `batch_size` rows, drawn without replacement by a fixed seed.
    Logs are ordered by time or user, and a batch of training is not."""
    ranker.eval()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED))
    batches = torch.split(order, batch_size)[:num_batches]
    found: list[tuple[Tensor, Tensor]] = []
    for rows_B in batches:
        at_rows_TN, at_parameters_TP = _task_gradients(ranker, rows.take_batch(rows_B), losses)
        found.append((cosines(at_rows_TN), cosines_where_both(at_parameters_TP)))
    at_rows, at_parameters = (torch.stack(matrices).nanmean(dim=0).numpy() for matrices in zip(*found, strict=True))
    return Conflicts(tasks, len(batches), batch_size, at_rows, at_parameters)


def _task_gradients(ranker: Ranker, batch: Batch, losses: TaskLosses) -> tuple[Tensor, Tensor]:
    """Each task's gradient at rows_BD, [T, B * D], and at the fusion network's parameters, [T, P]."""
    rows_BD = ranker.embeddings(batch.request, batch.candidate).detach().requires_grad_()
    losses_T = losses(ranker.network(rows_BD), batch.targets_BT, batch.observed_BT)
    parameters = [parameter for parameter in ranker.network.fusion.parameters() if parameter.requires_grad]
    at_rows, at_parameters = [], []
    for loss in losses_T:
        gradients = torch.autograd.grad(
            loss, [rows_BD, *parameters], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        at_rows.append(gradients[0].flatten())
        at_parameters.append(torch.cat([rows_BD.new_zeros(0), *(gradient.flatten() for gradient in gradients[1:])]))
    return torch.stack(at_rows), torch.stack(at_parameters)


def cosines(gradients_TN: Tensor) -> Tensor:
    """Cosines [T, T] in float64. NaN where a gradient is zero."""
    gradients_TN = gradients_TN.double()
    norms_T = gradients_TN.norm(dim=1)
    return gradients_TN @ gradients_TN.T / torch.outer(norms_T, norms_T)


def cosines_where_both(gradients_TP: Tensor) -> Tensor:
    """Cosines [T, T] of each pair over the values at which neither gradient is zero. NaN where there is none.

    A part of the network that one task alone uses is no part of its conflict with others, and would hide it."""
    gradients_TP = gradients_TP.double()
    # squares_TT[i, j]: the squared length of gradient i over the values that gradient j reaches.
    squares_TT = gradients_TP.square() @ (gradients_TP != 0).double().T
    return gradients_TP @ gradients_TP.T / (squares_TT * squares_TT.T).sqrt()


def _nullable(matrix: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]
