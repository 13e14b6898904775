"""The policies of a learned routing network: each task's chances of the modules, perplexity, likeness between tasks.

In: a run's best ranker and its log. Out: one `LayerPolicies` per routed layer, and perplexities over training
("Re-examining Routing Networks for Multi-task Learning", Figures 1, 2 and 4).

Shapes: T tasks, M modules.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from model.fusion import LearnedRouting
from model.fusion.policy import perplexities, probabilities
from training.inspect.conflicts import cosines
from training.run.history import PERPLEXITY, PLACEBO_PERPLEXITY, read_log, series
from training.run.run import Run


@dataclass(frozen=True)
class LayerPolicies:
    """A routed layer (from 0). chances_TM, perplexity_T (exp of the entropy: 1 decided, M even), and the cosines
    between the tasks' chances (1: the same policy, 0: no module in common)."""

    layer: int
    tasks: list[str]
    chances_TM: NDArray[np.float64]
    perplexity_T: NDArray[np.float64]
    cosines_TT: NDArray[np.float64]

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "layer": self.layer,
            "tasks": self.tasks,
            "probabilities": self.chances_TM.tolist(),
            "perplexity": self.perplexity_T.tolist(),
            "cosines": self.cosines_TT.tolist(),
        }


def layer_policies(fusion: nn.Module, tasks: list[str]) -> list[LayerPolicies]:
    """The policies of every routed layer. Empty for networks without any."""
    if not isinstance(fusion, LearnedRouting):
        return []
    found = []
    for layer, module in fusion.routed_layers().items():
        chances_TM = probabilities(module.policy_TM.detach().double(), module.kind)
        perplexity_T = perplexities(module.policy_TM, module.kind)
        found.append(LayerPolicies(layer, tasks, chances_TM.numpy(), perplexity_T.numpy(), cosines(chances_TM).numpy()))
    return found


def perplexity_over_training(run: Run, *, of_placebos: bool = False) -> dict[int, list[float]]:
    """Per routed layer the mean perplexity of its policies, or of its placebos, at each point of the run's log."""
    prefix = PLACEBO_PERPLEXITY if of_placebos else PERPLEXITY
    return {int(layer): values for layer, values in series(read_log(run), prefix).items()}
