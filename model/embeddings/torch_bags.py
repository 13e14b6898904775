"""Embedding tables in plain torch, for machines where no build of fbgemm fits (`embeddings.engine: torch`).

One nn.EmbeddingBag a table with sparse gradients, so that a step touches the rows it read. Their optimizers step
outside of backward (training/step/optimizers.py). Names and first weights are those of TorchRec's collections.

Shapes: B rows, V values, F features.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class BagTable(NamedTuple):
    """A table, the features that read it, by the names of their outputs."""

    name: str
    rows: int
    dim: int
    features: Mapping[str, str]


class TorchBags(nn.Module):
    """Tables by name, and every feature's pooled rows."""

    def __init__(self, tables: Sequence[BagTable], device: torch.device, *, sparse: bool) -> None:
        super().__init__()
        self.tables = tuple(tables)
        self._sparse = sparse
        self.embedding_bags = nn.ModuleDict()
        for table in tables:
            # Drawn on the CPU, whose generator the seed sets: the same numbers on every device.
            weights = torch.empty(table.rows, table.dim).uniform_(-(table.rows**-0.5), table.rows**-0.5)
            bag = nn.EmbeddingBag(table.rows, table.dim, device="meta", sparse=sparse)
            bag.weight = nn.Parameter(weights.to(device))
            self.embedding_bags[table.name] = bag

    def forward(self, features: Sequence[str], values_V: Tensor, lengths_FB: Tensor) -> dict[str, Tensor]:
        """The summed rows of every feature by the name of its output. An empty list is a row of zeros."""
        parts = dict(zip(features, torch.split(values_V, lengths_FB.sum(dim=1).tolist()), strict=True))
        lengths = dict(zip(features, lengths_FB, strict=True))
        pooled: dict[str, Tensor] = {}
        for table in self.tables:
            weight = cast(Tensor, self.embedding_bags[table.name].weight)
            for feature, output in table.features.items():
                offsets_B = torch.cumsum(lengths[feature], 0) - lengths[feature]
                pooled[output] = functional.embedding_bag(
                    parts[feature], weight, offsets_B, mode="sum", sparse=self._sparse
                )
        return pooled
