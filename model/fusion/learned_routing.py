"""Learned routing ("Re-examining Routing Networks for Multi-task Learning", sections 2.2 and A.1). Scripted in
evaluation mode by TorchScript.

In: rows_BD. Out: fused_BTH. A routed layer has M modules (Linear and ReLU) and a tabular policy: for each task a
distribution over them. Training draws a module per row, task and routed layer, and computes that module alone.
Evaluation takes each task's most probable one. A layer that is not routed has one module for all tasks. The policies
are learned from rewards (training/step/routing.py), not by the gradient of the loss.

Shapes: B rows, T tasks, P paths at a layer (1 below the first routed layer, T above it), M modules, D input, H width, E
modules of all routes, N rows of one module.
"""

from functools import partial
from typing import Literal, Self, cast

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from model.fusion.chosen_modules import apply_by_module
from model.fusion.experts import ExpertLinear
from model.fusion.frozen import Expert, FrozenLevel, FrozenNetwork
from model.fusion.levels import Levels, all_widths
from model.fusion.policy import Policy, PolicyConfig, PolicyKind, perplexities
from model.fusion.slots import Slots, linear_slots


class LearnedRoutingConfig(PolicyConfig):
    """Sizes of a learned routing network, and how its policies are learned.

    `routed` names the layers that are routed (from 0, all by default)."""

    kind: Literal["learned_routing"]
    levels: Levels
    num_modules: PositiveInt
    routed: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        depth = len(all_widths(self.levels))
        wrong = [layer for layer in self.routed or () if not 0 <= layer < depth]
        if wrong:
            raise ValueError(f"routed: there is no layer {wrong[0]}; the network has layers 0 to {depth - 1}")
        return self

    def build(self, input_width: int, num_tasks: int) -> "LearnedRouting":
        """The network for rows of `input_width` columns."""
        return LearnedRouting(input_width, num_tasks, self)


class LearnedRouting(nn.Module):
    """Layers of modules that policies choose from: rows_BD -> fused_BTH.

    In training mode it draws from `next_seed` (set it before each step, so that a resumed run draws the same) or, while
    that is None, from torch's global generator. The layers keep what was drawn. `is_warm_up` shares every draw."""

    def __init__(self, input_width: int, num_tasks: int, config: LearnedRoutingConfig) -> None:
        super().__init__()
        widths = all_widths(config.levels)
        routed = range(len(widths)) if config.routed is None else config.routed
        layers: list[nn.Module] = []
        for position, width in enumerate(widths):
            if position in routed:
                layers.append(RoutedLayer(input_width, width, num_tasks, config.num_modules, config.policy))
            else:
                layers.append(SharedLayer(input_width, width))
            input_width = width
        self.config = config
        self.layers = nn.ModuleList(layers)
        self.num_tasks: int = num_tasks
        self.output_width: int = input_width
        self.next_seed: int | None = None
        self.is_warm_up = False

    def forward(self, rows_BD: Tensor) -> Tensor:
        """fused_BTH of rows_BD."""
        paths_BPD = rows_BD.unsqueeze(1)
        if self.training:
            paths_BPD = self._drawn(paths_BPD)
        else:
            for layer in self.layers:
                paths_BPD = layer(paths_BPD)
        # Not copied where all tasks still share one path.
        return paths_BPD.expand(-1, self.num_tasks, -1)

    def frozen(self, num_tasks: int) -> FrozenNetwork:
        """The network as data (model/fusion/frozen.py): each task along its most probable modules."""
        levels: list[FrozenLevel] = []
        source_of_task = [0] * num_tasks
        for layer in self.layers:
            if isinstance(layer, SharedLayer):
                # Behind a routed layer every task's path passes by the one module.
                paths = sorted(set(source_of_task))
                experts = [Expert(path, [(layer.linear.weight, layer.linear.bias)]) for path in paths]
            else:
                assert isinstance(layer, RoutedLayer)
                weights_DH = layer.choices.weight_EDH.index_select(0, layer.policy_TM.argmax(dim=1))
                biases_1H = layer.choices.bias_E1H.index_select(0, layer.policy_TM.argmax(dim=1))
                chosen = zip(source_of_task, weights_DH, biases_1H, strict=True)
                experts = [Expert(path, [(weight_DH.t(), bias_1H[0])]) for path, weight_DH, bias_1H in chosen]
                source_of_task = list(range(num_tasks))
            levels.append(FrozenLevel(experts, None))
        return FrozenNetwork(1, levels, source_of_task)

    def slots(self, tasks: list[str]) -> Slots:
        """All layers and policies by name (model/fusion/slots.py)."""
        slots: Slots = {}
        for position, layer in enumerate(self.layers):
            name = f"layer.{position}"
            if isinstance(layer, SharedLayer):
                slots |= linear_slots(f"{name}.module.0", layer.linear.weight, layer.linear.bias)
                continue
            assert isinstance(layer, RoutedLayer)
            modules = zip(layer.choices.weight_EDH.detach(), layer.choices.bias_E1H.detach(), strict=True)
            for number, (weight_DH, bias_1H) in enumerate(modules):
                slots |= linear_slots(f"{name}.module.{number}", weight_DH.t(), bias_1H[0])
            policies = layer.policy_TM.detach()
            slots |= {f"{name}.policy.{task}": policy_M for task, policy_M in zip(tasks, policies, strict=True)}
        return slots

    @torch.jit.unused
    def _drawn(self, paths_BPD: Tensor) -> Tensor:
        generator = None
        if self.next_seed is not None:
            generator = torch.Generator(paths_BPD.device).manual_seed(self.next_seed)
        for layer in self.layers:
            if isinstance(layer, RoutedLayer):
                layer.draw(paths_BPD.shape[0], generator, is_shared=self.is_warm_up)
                paths_BPD = layer.along_drawn(paths_BPD)
            else:
                paths_BPD = layer(paths_BPD)
        return paths_BPD

    @torch.jit.unused
    def routed_layers(self) -> dict[int, "RoutedLayer"]:
        """The routed layers by their position, from 0."""
        return {position: layer for position, layer in enumerate(self.layers) if isinstance(layer, RoutedLayer)}


class SharedLayer(nn.Module):
    """One module for all tasks."""

    def __init__(self, input_width: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_width, width)

    def forward(self, paths_BPD: Tensor) -> Tensor:
        """paths_BPH behind the layer."""
        # As one matrix: on a strided 3-d input eager and scripted Linear may choose kernels that round apart.
        flat = self.linear(paths_BPD.reshape(-1, paths_BPD.shape[2]))
        return torch.relu(flat).view(paths_BPD.shape[0], paths_BPD.shape[1], flat.shape[1])


class RoutedLayer(Policy):
    """M modules and, per task, a policy over them."""

    def __init__(self, input_width: int, width: int, num_tasks: int, num_modules: int, kind: PolicyKind) -> None:
        super().__init__(num_tasks, num_modules, kind)
        self.choices = ExpertLinear(num_modules, input_width, width)

    def forward(self, paths_BPD: Tensor) -> Tensor:
        """paths_BTH, each task along its most probable module (of equals the first)."""
        route_T = self.policy_TM.argmax(dim=1)
        weight_TDH = self.choices.weight_EDH.index_select(0, route_T)
        bias_T1H = self.choices.bias_E1H.index_select(0, route_T)
        paths_TBD = paths_BPD.transpose(0, 1).expand(route_T.shape[0], -1, -1)
        return torch.relu(torch.baddbmm(bias_T1H, paths_TBD, weight_TDH).transpose(0, 1))

    @torch.jit.unused
    def along_drawn(self, paths_BPD: Tensor) -> Tensor:
        """paths_BTH along the drawn modules. Each module computes the rows that drew it and no others."""
        num_rows, num_tasks = self.drawn_BT.shape
        drawn_N = self.drawn_BT.reshape(-1)
        # A row's tasks read one path below the first routed layer, then each its own.
        is_own = paths_BPD.shape[1] == num_tasks
        source_N = None if is_own else torch.arange(len(drawn_N), device=drawn_N.device) // num_tasks
        modules = [
            partial(_linear, weight_DH, bias_1H)
            for weight_DH, bias_1H in zip(self.choices.weight_EDH, self.choices.bias_E1H, strict=True)
        ]
        outputs_NH = apply_by_module(paths_BPD.reshape(-1, paths_BPD.shape[2]), source_N, drawn_N, modules)
        return torch.relu(outputs_NH).view(num_rows, num_tasks, outputs_NH.shape[1])


def _linear(weight_DH: Tensor, bias_1H: Tensor, rows_ND: Tensor) -> Tensor:
    return torch.addmm(bias_1H, rows_ND, weight_DH)


def policy_perplexities(fusion: nn.Module) -> dict[int, float]:
    """Per routed layer the mean over tasks of exp(entropy): 1 is decided, M even. Empty for other networks."""
    if not isinstance(fusion, LearnedRouting):
        return {}
    return {
        position: cast(float, perplexities(layer.policy_TM, layer.kind).mean().item())
        for position, layer in fusion.routed_layers().items()
    }
