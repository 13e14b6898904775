"""A network's parameters one by one, under plain names: what the weights of another implementation are mapped to.

Here the experts and gates of a level are stacked in few tensors. Elsewhere each is a module of its own. A slot is a
view of one layer's weight [out, in] or bias [out] in such a tensor: what is written to it is the network's. The names,
UNIT being a task or `shared`, and all numbers from 0 (`training/start/foreign_weights.py` maps them):

    level.0.expert.UNIT.0.0.weight     AdaTT, PLE, cross-stitch: level, unit, its expert, layer of that expert's MLP
    level.0.expert.0.0.weight          MMoE: its experts belong to no task
    level.0.gate.UNIT.weight           one output per expert that it mixes. In ML-MMoE a number below the last level
    level.0.native.UNIT                AdaTT: the unit's native weights, one per expert
    level.0.stitch                     cross-stitch, [T, T]
    cross.0.0.weight                   cross layers: of a low rank, [D, rank], and the other matrix is cross.0.down
    layer.0.weight                     shared-bottom
    expert.TASK.0.weight               no sharing: task, layer
    transfer.TASK.inform.weight        AITM, which also has expert.TASK: what a task receives
    transfer.TASK.query.weight         the same for `key` and `value`
    layer.0.module.0.weight            routing: layer, module (of fixed routing those that some task drew)
    layer.0.policy.TASK                learned routing, one value per module
    tower.TASK.0.weight                task, layer
    tower.TASK.base.weight             of a task with jrc: its base logit

Shapes: T tasks, D inputs, H outputs.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Kind = TypeVar("Kind", bound=nn.Module)
Slots = dict[str, Tensor]
# Weight [out, in] and bias [out] of the layers of an MLP.
Layers = list[tuple[Tensor, Tensor]]


def linear_slots(name: str, weight_HD: Tensor, bias_H: Tensor) -> Slots:
    """The slots of one Linear."""
    return {f"{name}.weight": weight_HD.detach(), f"{name}.bias": bias_H.detach()}


def layer_slots(name: str, layers: Sequence[tuple[Tensor, Tensor]]) -> Slots:
    """The slots of an MLP: `name` and the layer's number."""
    slots: Slots = {}
    for number, (weight_HD, bias_H) in enumerate(layers):
        slots |= linear_slots(f"{name}.{number}", weight_HD, bias_H)
    return slots


def gate_slots(prefix: str, gates: Sequence[nn.Linear], units: Sequence[str], widths: Sequence[int]) -> Slots:
    """The slots of the units' gates, `widths` outputs each: a Linear for each unit, or one for all."""
    slots: Slots = {}
    parts: Layers = []
    for gate in gates:
        split = list(widths) if len(gates) == 1 else [gate.out_features]
        parts += zip(torch.split(gate.weight.detach(), split), torch.split(gate.bias.detach(), split), strict=True)
    for unit, part in zip(units, parts, strict=True):
        slots |= linear_slots(f"{prefix}.gate.{unit}", *part)
    return slots


def linears(modules: Sequence[nn.Module]) -> Layers:
    """Weight and bias of those that are Linear."""
    return [(module.weight, module.bias) for module in modules if isinstance(module, nn.Linear)]


def typed(modules: nn.ModuleList, kind: type[Kind]) -> list[Kind]:
    """The modules of a list, all of one kind."""
    assert all(isinstance(module, kind) for module in modules)
    return [module for module in modules if isinstance(module, kind)]


def expert_names(units: Sequence[str], experts_per_unit: Sequence[int]) -> list[str]:
    """UNIT.0, UNIT.1, ...: the experts of a level in their order."""
    return [f"{unit}.{m}" for unit, count in zip(units, experts_per_unit, strict=True) for m in range(count)]


def unit_names(tasks: Sequence[str], num_units: int) -> list[str]:
    """The tasks, and the shared unit where there is one. Raises ValueError where a task has its name."""
    if num_units == len(tasks):
        return list(tasks)
    if "shared" in tasks:
        raise ValueError("a task is named 'shared', as the unit of the shared experts is; rename it to map weights")
    return [*tasks, "shared"]
