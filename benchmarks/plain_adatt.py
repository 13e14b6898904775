"""AdaTT-sp with its towers as public multi-task code writes it: a module per expert, loops over tasks.

The yardstick of benchmarks/network_speed.py and of benchmarks/serving.py: the equations of model/fusion/adatt.py, and
no batched product. `NAMES` maps the project's names to those of `PlainAdaTT`, which TorchScript can script.

Shapes: B rows, T tasks, E experts of a level, M native experts of a task, D input, H width of a layer, K single-id
features, Q numbers.
"""

import math

import torch
from torch import Tensor, nn

from model.features.block import BlockTensors

# TorchScript reads these modules: lists are filled by loops, and only lists of modules stand in a zip.
# ruff: noqa: B905, PERF401

NAMES = {
    "level.{level}.expert.{task}.{expert}.{layer}.{part}": (
        "levels.{level}.task_experts.{task#}.{expert}.layers.{layer*2}.{part}"
    ),
    "level.{level}.gate.{task}.{part}": "levels.{level}.gates.{task#}.0.{part}",
    "level.{level}.native.{task}": "levels.{level}.native_weights.{task#}",
    "tower.{task}.0.{part}": "towers.{task#}.0.layers.0.{part}",
    "tower.{task}.1.{part}": "towers.{task#}.1.{part}",
}


class Mlp(nn.Module):
    """Linear and ReLU, layer by layer."""

    def __init__(self, input_width: int, widths: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Linear(input_width, width), nn.ReLU()]
            input_width = width
        self.layers = nn.Sequential(*layers)

    def forward(self, rows_BD: Tensor) -> Tensor:
        """outputs_BH."""
        outputs_BH: Tensor = self.layers(rows_BD)
        return outputs_BH


class Level(nn.Module):
    """One fusion level. All its lists have an entry per task."""

    def __init__(self, input_width: int, widths: list[int], num_tasks: int, num_native: int) -> None:
        super().__init__()
        self.task_experts = nn.ModuleList(
            [nn.ModuleList([Mlp(input_width, widths) for _ in range(num_native)]) for _ in range(num_tasks)]
        )
        self.gates = nn.ModuleList(
            [nn.Sequential(nn.Linear(input_width, num_tasks * num_native), nn.Softmax(dim=1)) for _ in range(num_tasks)]
        )
        bound = 1 / math.sqrt(num_native)
        self.native_weights = nn.ParameterList(
            [nn.Parameter(torch.empty(1, num_native).uniform_(-bound, bound)) for _ in range(num_tasks)]
        )

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Each task's fused_BH of each task's input_BD."""
        outputs: list[Tensor] = []
        for task, experts in enumerate(self.task_experts):
            native: list[Tensor] = []
            for expert in experts:  # type: ignore[attr-defined]
                native.append(expert(inputs[task]))
            outputs.append(torch.stack(native, dim=1))
        experts_BEH = torch.cat(outputs, dim=1)
        fused: list[Tensor] = []
        for task, (gate, native_1M) in enumerate(zip(self.gates, self.native_weights)):
            gated_B1H = torch.bmm(gate(inputs[task]).unsqueeze(1), experts_BEH)
            fused.append((gated_B1H + torch.matmul(native_1M, outputs[task])).squeeze(1))
        return fused


class PlainAdaTT(nn.Module):
    """Levels and towers: rows_BD -> logits_BT."""

    def __init__(
        self, input_width: int, levels: list[list[int]], num_tasks: int, num_native: int, tower: list[int]
    ) -> None:
        super().__init__()
        stack = []
        width = input_width
        for widths in levels:
            stack.append(Level(width, widths, num_tasks, num_native))
            width = widths[-1]
        self.levels = nn.ModuleList(stack)
        self.num_tasks = num_tasks
        self.towers = nn.ModuleList(
            [nn.Sequential(Mlp(width, tower), nn.Linear(tower[-1], 1)) for _ in range(num_tasks)]
        )

    def forward(self, rows_BD: Tensor) -> Tensor:
        """logits_BT."""
        inputs = [rows_BD] * self.num_tasks
        for level in self.levels:
            inputs = level(inputs)
        logits: list[Tensor] = []
        for task, tower in enumerate(self.towers):
            logits.append(tower(inputs[task]))
        return torch.cat(logits, dim=1)


class PlainRanker(nn.Module):
    """An nn.Embedding per feature, one id each, before the network. In: both blocks of a batch. Out: logits_BT."""

    def __init__(self, request_tables: list[Tensor], candidate_tables: list[Tensor], network: PlainAdaTT) -> None:
        super().__init__()
        self.request, self.candidate = (
            nn.ModuleList([nn.Embedding(len(table), table.shape[1], _weight=table.clone()) for table in tables])
            for tables in (request_tables, candidate_tables)
        )
        self.network = network

    def forward(self, request: BlockTensors, candidate: BlockTensors) -> Tensor:
        """logits_BT."""
        parts: list[Tensor] = []
        for embeddings, block in ((self.request, request), (self.candidate, candidate)):
            parts += [embedding(ids_B) for embedding, ids_B in zip(embeddings, block.ids_BK.unbind(1), strict=True)]
            parts.append(block.numbers_BQ)
        logits_BT: Tensor = self.network(torch.cat(parts, dim=1))
        return logits_BT
