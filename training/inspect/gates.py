"""Gates of a fusion network on some rows: mean expert weights, gate entropy and the use of experts.

In: a ranker and rows. Out: one `LevelGates` per fusion level, or two numbers a level while it trains.
Weights are those that the experts are mixed with: the gate's softmax, and in AdaTT the native weight on top (the heat
maps of the AdaTT paper, Figure 3).

Shapes: B rows, G fused units of a level, E experts of the level.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.fusion import FusionConfig
from model.fusion.adatt import FusionLevel
from model.fusion.names import unit_and_expert_names
from model.ranker import Ranker
from training.data.rows import Batch, Rows

ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class LevelGates:
    """One fusion level. `units` and `experts` name the rows and columns. Entropies are in nats.

    weights_GE: mean over rows of gate + native weight. entropy_G: mean over rows of the gate's entropy, native weights
    left out. It is 0 where each row takes one expert, and the log of the experts seen where all are alike. largest_GE:
    the share of rows for which an expert has the unit's largest weight."""

    units: list[str]
    experts: list[str]
    weights_GE: NDArray[np.float64]
    entropy_G: NDArray[np.float64]
    largest_GE: NDArray[np.float64]

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "units": self.units,
            "experts": self.experts,
            "mean_weights": self.weights_GE.tolist(),
            "gate_entropy": self.entropy_G.tolist(),
            "largest_share": self.largest_GE.tolist(),
        }


def level_gates(ranker: Ranker, rows: Rows, config: FusionConfig, tasks: list[str]) -> list[LevelGates] | None:
    """The gates of every level over all rows. None for a network that has none."""
    fusion = cast(Any, ranker.network.fusion)
    if not hasattr(fusion, "expert_weights"):
        return None
    ranker.eval()
    sums: list[_Sums] = []
    with torch.no_grad():
        native = _native_weights_of_levels(fusion)
        for batch in rows.batches(ROWS_AT_ONCE):
            weights = fusion.expert_weights(_rows_read(ranker, batch))
            sums = sums or [_Sums() for _ in weights]
            for level, weights_BGE, native_GE in zip(sums, weights, native, strict=True):
                level.add(weights_BGE, native_GE)
    levels = []
    for position, level in enumerate(sums):
        weights_GE, entropy_G, largest_GE = (part.numpy() / len(rows) for part in level.parts)
        is_last = position == len(sums) - 1
        units, experts = unit_and_expert_names(config, tasks, *weights_GE.shape, is_last=is_last)
        levels.append(LevelGates(units, experts, weights_GE, entropy_G, largest_GE))
    return levels


def gate_use(ranker: Ranker, batch: Batch) -> list[tuple[float, float]]:
    """Per level (gate entropy, experts used). Empty for a network without gates. The first is the mean over rows and
    units, in nats. The second is exp of the entropy of the gate weights' mean over rows and units: 1 where one expert
    takes all, E where all are used alike. Native weights are left out of both."""
    fusion = cast(Any, ranker.network.fusion)
    if not hasattr(fusion, "expert_weights"):
        return []
    found = []
    with torch.no_grad():
        weights = fusion.expert_weights(_rows_read(ranker, batch))
        for weights_BGE, native_GE in zip(weights, _native_weights_of_levels(fusion), strict=True):
            gates_BGE = _gates(weights_BGE, native_GE)
            entropy = torch.special.entr(gates_BGE).sum(dim=2).mean()
            experts_used = torch.special.entr(gates_BGE.mean(dim=(0, 1))).sum().exp()
            found.append((float(entropy), float(experts_used)))
    return found


def _rows_read(ranker: Ranker, batch: Batch) -> Tensor:
    """Rows of a batch as the fusion network reads them."""
    return ranker.network.crossed(ranker.embeddings(batch.request, batch.candidate))


def _gates(weights_BGE: Tensor, native_GE: Tensor) -> Tensor:
    # The difference may be an ulp below 0, where the entropy is -inf.
    return (weights_BGE - native_GE).double().clamp(min=0.0)


def _native_weights_of_levels(fusion: Any) -> list[Tensor]:
    # The tasks of an AITM are mixed in one place: it has no levels.
    return [_native_weights(level) for level in fusion.levels] if hasattr(fusion, "levels") else [torch.zeros(())]


def _native_weights(level: nn.Module) -> Tensor:
    return level.padded_native_weights() if isinstance(level, FusionLevel) and level.has_native else torch.zeros(())


class _Sums:
    """Sums over rows of one level, in float64: over millions of rows float32 would lose the digits that are shown."""

    def __init__(self) -> None:
        zero = torch.zeros((), dtype=torch.float64)
        self.parts = [zero, zero, zero]

    def add(self, weights_BGE: Tensor, native_GE: Tensor) -> None:
        gates_BGE = _gates(weights_BGE, native_GE)
        largest_BGE = nn.functional.one_hot(weights_BGE.argmax(dim=2), weights_BGE.shape[2])
        more = (
            weights_BGE.sum(dim=0, dtype=torch.float64),
            torch.special.entr(gates_BGE).sum(dim=(0, 2)),
            largest_BGE.sum(dim=0, dtype=torch.float64),
        )
        self.parts = [before + part for before, part in zip(self.parts, more, strict=True)]
