"""Fixed random routing ("Re-examining Routing Networks for Multi-task Learning", section 2.3). Scripted by TorchScript.

In: rows_BD. Out: fused_BTH. A routed layer has M modules (Linear and ReLU). Each task draws one of them from the seed
when the network is made, and keeps it. A layer that is not routed has one module for all tasks. Tasks with the same
route so far share their computation. Modules that no task drew are not built.

Shapes: B rows, T tasks, P distinct routes at a layer, D input, H width of a layer.
"""

import random
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from model.fusion.frozen import Expert, FrozenLevel, FrozenNetwork
from model.fusion.levels import Levels, all_widths
from model.fusion.slots import Slots, linear_slots, typed
from model.strict_yaml import StrictModel


class FixedRandomRoutingConfig(StrictModel):
    """Sizes of a fixed random routing network. `routed` names the layers that are routed (from 0, all by default)."""

    kind: Literal["fixed_random_routing"]
    levels: Levels
    num_modules: PositiveInt
    routed: tuple[int, ...] | None = None
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "FixedRandomRoutingConfig":
        depth = len(all_widths(self.levels))
        wrong = [layer for layer in self.routed or () if not 0 <= layer < depth]
        if wrong:
            raise ValueError(f"routed: there is no layer {wrong[0]}; the network has layers 0 to {depth - 1}")
        return self

    def routes(self, num_tasks: int) -> list[list[int]]:
        """The module of each task, layer by layer."""
        depth = len(all_widths(self.levels))
        routed = range(depth) if self.routed is None else self.routed
        return random_routes(self.seed, num_tasks, self.num_modules, [layer in routed for layer in range(depth)])

    def build(self, input_width: int, num_tasks: int) -> "FixedRouting":
        """The network for rows of `input_width` columns."""
        return FixedRouting(input_width, all_widths(self.levels), self.routes(num_tasks))


def random_routes(seed: int, num_tasks: int, num_modules: int, is_routed: Sequence[bool]) -> list[list[int]]:
    """The module that each task draws, layer by layer. 0 for all in a layer that is not routed."""
    # Python's own generator: the same routes after any draws of torch.
    draw = random.Random(seed)
    return [[draw.randrange(num_modules) if routed else 0 for _ in range(num_tasks)] for routed in is_routed]


class FixedRouting(nn.Module):
    """Layers of modules along given routes: rows_BD -> fused_BTH. `routes[layer][task]` is a module's number."""

    node_of_task: Tensor

    def __init__(self, input_width: int, widths: list[int], routes: list[list[int]]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        # Tasks that have taken the same modules so far are at the same node, and are computed once.
        node_of_task = [0] * len(routes[0])
        for width, modules in zip(widths, routes, strict=True):
            steps = sorted(set(zip(modules, node_of_task, strict=True)))
            layers.append(RoutedLayer(input_width, width, steps, is_first=not layers))
            node_of_task = [steps.index(step) for step in zip(modules, node_of_task, strict=True)]
            input_width = width
        self.layers = nn.ModuleList(layers)
        # Buffers, for an index that is a list would be copied from the host to the device at every step.
        self.register_buffer("node_of_task", torch.tensor(node_of_task), persistent=False)
        self.output_width: int = input_width

    def forward(self, rows_BD: Tensor) -> Tensor:
        """fused_BTH of rows_BD."""
        nodes_BPD = rows_BD.unsqueeze(1)
        for layer in self.layers:
            nodes_BPD = layer(nodes_BPD)
        return nodes_BPD.index_select(1, self.node_of_task)

    def frozen(self, num_tasks: int) -> FrozenNetwork:
        """The network as data (model/fusion/frozen.py): an expert for each step of a layer."""
        assert num_tasks == len(self.node_of_task)
        levels = [FrozenLevel(layer.experts(), None) for layer in typed(self.layers, RoutedLayer)]
        return FrozenNetwork(1, levels, [int(node) for node in self.node_of_task])

    def slots(self, tasks: list[str]) -> Slots:
        """All layers by name (model/fusion/slots.py). Modules keep the numbers they were drawn by."""
        slots: Slots = {}
        for position, layer in enumerate(typed(self.layers, RoutedLayer)):
            for number, linear in zip(layer.drawn, typed(layer.linears, nn.Linear), strict=True):
                slots |= linear_slots(f"layer.{position}.module.{number}", linear.weight, linear.bias)
        return slots


class RoutedLayer(nn.Module):
    """Applies `steps` (module, node), sorted: nodes_BPD -> one output for each step, in their order."""

    sources: Tensor

    def __init__(self, input_width: int, width: int, steps: list[tuple[int, int]], *, is_first: bool) -> None:
        super().__init__()
        self.drawn: list[int] = sorted({module for module, _ in steps})
        self.num_sources: list[int] = [sum(module == number for module, _ in steps) for number in self.drawn]
        self.register_buffer("sources", torch.tensor([node for _, node in steps]), persistent=False)
        self.linears = nn.ModuleList([nn.Linear(input_width, width) for _ in self.drawn])

    def forward(self, nodes_BPD: Tensor) -> Tensor:
        """nodes_BPH behind the layer."""
        inputs = torch.split_with_sizes(nodes_BPD.index_select(1, self.sources), self.num_sources, dim=1)
        outputs: list[Tensor] = []
        for module, linear in enumerate(self.linears):
            outputs.append(linear(inputs[module]))
        return torch.relu(torch.cat(outputs, dim=1))

    def experts(self) -> list[Expert]:
        """The steps as experts of one layer, in their order."""
        modules = [
            linear
            for linear, count in zip(typed(self.linears, nn.Linear), self.num_sources, strict=True)
            for _ in range(count)
        ]
        sources = [int(source) for source in self.sources]
        return [Expert(source, [(linear.weight, linear.bias)]) for source, linear in zip(sources, modules, strict=True)]
