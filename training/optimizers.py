"""Optimizers: one for the dense part, one for the embedding tables, one learning-rate schedule for both.

The tables' optimizer is fused into backward, or (adam) steps beside the dense part.
"""

import math
from typing import Any

import torch

from model.ranker import Ranker
from training.balancing import Balancing
from training.config import OptimizerConfig


class Optimizers:
    """Steps a ranker, and what its balancing learns; `total_steps` is the length of the schedule."""

    def __init__(
        self, ranker: Ranker, config: OptimizerConfig, total_steps: int, balancing: Balancing | None = None
    ) -> None:
        self._config = config
        self._total_steps = total_steps
        self._fused = ranker.embeddings.fused_optimizer()
        groups: list[dict[str, Any]] = [
            {
                "params": list(ranker.network.parameters()),
                "lr": config.dense.learning_rate,
                "weight_decay": config.dense.weight_decay,
            }
        ]
        tables = [] if ranker.embeddings.is_fused else list(ranker.embeddings.parameters())
        if tables:
            groups.append({"params": tables, "lr": config.tables.learning_rate, "weight_decay": 0.0})
        learned = [] if balancing is None else list(balancing.parameters())
        if balancing is not None and learned:
            groups.append({"params": learned, "lr": balancing.learning_rate, "weight_decay": 0.0})
        # fused=True: one kernel for all parameters; the rule is Adam's own (Kingma and Ba).
        self._dense = torch.optim.Adam(groups, fused=True)
        self._rates: list[float] = [group["lr"] for group in groups]

    def zero_grad(self) -> None:
        """Clears the gradients of a new step; call before backward."""
        self._dense.zero_grad(set_to_none=True)

    def start_step(self, step: int) -> None:
        """Sets the learning rates of step `step` (0-based), before its backward, inside which fused tables update."""
        factor = 1.0
        if self._config.schedule == "cosine":
            factor = 0.5 * (1.0 + math.cos(math.pi * step / self._total_steps))
        for group, rate in zip(self._dense.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        if self._fused is not None:
            for group in self._fused.param_groups:
                group["lr"] = self._config.tables.learning_rate * factor
            # TorchRec hands a changed rate to its kernels here; the tables themselves step in backward.
            self._fused.step()

    def step(self) -> None:
        """Updates everything that is not fused."""
        self._dense.step()

    def state(self) -> dict[str, Any]:
        """All optimizer state, for checkpoints."""
        return {"dense": self._dense.state_dict(), "fused": None if self._fused is None else self._fused.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores `state()`."""
        self._dense.load_state_dict(state["dense"])
        if self._fused is not None:
            self._fused.load_state_dict(state["fused"])
