"""Optimizers: one for the dense part, one or more for the embedding tables, one learning-rate schedule for all.

The tables' optimizers are fused into backward, step beside the dense part (adam: dense gradients), or, for tables in
plain torch, step after backward on sparse gradients. All states of tables go by table (`momenta`), with every engine.

Clipping (`clip_norm`) bounds two norms of a global batch's gradient: that at the embedding row, from which all tables
learn, before backward goes on into them (so it reaches fused optimizers too), and that of the dense part.

Shapes: B rows, D columns of the dense row, R rows of a table.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from model.embeddings.embeddings import ADAGRAD_EPSILON, TableOptimizer
from model.ranker import Ranker
from training.config import OptimizerConfig
from training.distributed.sharding import local_parts, local_rows
from training.step.balancing import Balancing
from training.step.sparse_adagrad import SparseAdagrad


class Optimizers:
    """Steps a ranker, and what its balancing learns. `total_steps` is the length of the schedule. `rate_factor`
    multiplies every learning rate."""

    def __init__(
        self,
        ranker: Ranker,
        config: OptimizerConfig,
        total_steps: int,
        balancing: Balancing | None = None,
        *,
        rate_factor: float = 1.0,
    ) -> None:
        self._config = config
        self._total_steps = total_steps
        self._rate_factor = rate_factor
        self._fused = ranker.embeddings.fused_optimizers()
        self._network = list(ranker.network.parameters())
        groups: list[dict[str, Any]] = [
            {
                "params": self._network,
                "lr": config.dense.learning_rate,
                "weight_decay": config.dense.weight_decay,
            }
        ]
        self._sparse: list[tuple[torch.optim.Optimizer, float]] = []
        self._name_of: dict[int, str] = {}
        for outside, parameters in ranker.embeddings.parameters_outside():
            if outside.fused is None:
                groups.append({"params": parameters, "lr": outside.learning_rate, "weight_decay": 0.0})
            else:
                self._sparse.append((_sparse_optimizer(outside, parameters), outside.learning_rate))
        for name, parameter in ranker.embeddings.named_parameters():
            self._name_of[id(parameter)] = name.removesuffix(".weight").rpartition(".")[2]
        self._replicated = [parameter for group in groups for parameter in group["params"]]
        learned = [] if balancing is None else list(balancing.parameters())
        if balancing is not None and learned:
            groups.append({"params": learned, "lr": balancing.learning_rate, "weight_decay": 0.0})
        # fused=True: one kernel for all parameters. The rule is Adam's own (Kingma and Ba).
        is_adam = config.dense.kind == "adam"
        self._dense: torch.optim.Optimizer = (
            torch.optim.Adam(groups, fused=True) if is_adam else torch.optim.SGD(groups)
        )
        self._rates: list[float] = [group["lr"] for group in groups]

    def zero_grad(self) -> None:
        """Clear the gradients of a new step. Call it before backward."""
        for optimizer in (self._dense, *(optimizer for optimizer, _ in self._sparse)):
            optimizer.zero_grad(set_to_none=True)

    def start_step(self, step: int) -> None:
        """Set the learning rates of step `step` (0-based), before its backward, inside which fused tables update."""
        factor = self._rate_factor * self._config.rate_factor(step, self._total_steps)
        for group, rate in zip(self._dense.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        for optimizer, rate in (*self._fused, *self._sparse):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        for optimizer, _ in self._fused:
            # TorchRec hands a changed rate to its kernels here. The tables themselves step in backward.
            optimizer.step()

    def step(self, sum_gradients: Callable[[list[torch.nn.Parameter]], None] | None = None) -> None:
        """Update everything that is not fused. `sum_gradients` adds up over processes what each has a copy of."""
        if sum_gradients is not None:
            sum_gradients(self._replicated)
        if self._config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._network, self._config.clip_norm)
        self._dense.step()
        for optimizer, _ in self._sparse:
            optimizer.step()

    def clipped(self, rows_BD: Tensor, across: Callable[[Tensor], Tensor] | None) -> Tensor:
        """rows_BD itself. On the way back its gradient is scaled down to `clip_norm`, over all processes' rows."""
        if self._config.clip_norm is None or not rows_BD.requires_grad:
            return rows_BD
        clipped_BD = _ClippedOnTheWayBack.apply(rows_BD, self._config.clip_norm, across)  # type: ignore[no-untyped-call]
        return cast(Tensor, clipped_BD)

    def momenta(self) -> dict[str, Any]:
        """The states of the tables' fused (or sparse) optimizers by table, of sharded tables ShardedTensors."""
        found: dict[str, Any] = {}
        for optimizer, _ in self._fused:
            for key, state in optimizer.state_dict()["state"].items():
                for value in state.values():
                    found[key.removeprefix("embedding_bags.").removesuffix(".weight")] = value
        for optimizer, _ in self._sparse:
            for parameter, state in optimizer.state.items():
                found |= {self._name_of[id(parameter)]: value for key, value in state.items() if key == "sum"}
        return found

    def reset_rows(self, table: str, rows_R: Tensor) -> None:
        """Clear what is kept of some rows of a table (or of a task's copy of it), in this process's part of it."""
        momentum = self.momenta().get(table)
        for part, (first_row, *_) in [] if momentum is None else local_parts(momentum):
            part[local_rows(rows_R, part, first_row)] = 0.0
        for parameter, state in self._dense.state.items():
            if self._name_of.get(id(parameter)) == table:
                for value in state.values():
                    if value.shape == parameter.shape:
                        value[rows_R] = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The state of what is not fused, for checkpoints."""
        return {"dense": self._dense.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state()`."""
        self._dense.load_state_dict(state["dense"])


def _sparse_optimizer(how: TableOptimizer, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """fbgemm's fused rules on sparse gradients."""
    if how.fused == "sgd":
        return torch.optim.SGD(parameters, lr=how.learning_rate)
    rowwise = how.fused == "rowwise_adagrad"
    return SparseAdagrad(parameters, lr=how.learning_rate, eps=ADAGRAD_EPSILON, rowwise=rowwise)


class _ClippedOnTheWayBack(torch.autograd.Function):
    """The identity, whose gradient is scaled so that its norm is at most `norm`."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows_BD: Tensor, norm: float, across: Callable[[Tensor], Tensor] | None) -> Tensor:
        ctx.norm, ctx.across = norm, across  # type: ignore[attr-defined]
        return rows_BD.view_as(rows_BD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient_BD,) = gradients
        squared = gradient_BD.square().sum().double()
        if ctx.across is not None:
            squared = ctx.across(squared)
        # The rule of torch's clip_grad_norm_.
        factor = (ctx.norm / (squared.sqrt() + 1e-6)).clamp(max=1.0)
        return gradient_BD * factor.to(gradient_BD.dtype), None, None
