"""Fusion networks that the contract suite runs on: every kind in several sizes, small enough to write out by loops.

A case is the configuration as a user writes it and the number of tasks. `CASES` is keyed by a name for test ids.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.fusion import FusionConfig, LearnedRouting, build_network
from model.ranker import Network, NetworkConfig

INPUT_WIDTH = 7


@dataclass(frozen=True)
class Case:
    """One network. `is_lone_gate`: some gate mixes a single expert, so its weight is 1 and no gradient reaches it.
    `given` has the place of the task that each is given, where the network goes along chains."""

    config: Mapping[str, Any]
    tasks: int
    is_lone_gate: bool = False
    given: tuple[int | None, ...] = ()

    @property
    def kind(self) -> str:
        """The network's name."""
        return str(self.config["kind"])

    @property
    def parsed(self) -> FusionConfig:
        """The validated configuration."""
        return NetworkConfig.from_mapping({"fusion": copy.deepcopy(self.config)}, "network.yaml").fusion

    @property
    def levels(self) -> list[list[int]]:
        """The layer widths of each level."""
        return [[level] if isinstance(level, int) else list(level) for level in self.config["levels"]]

    @property
    def widths(self) -> list[int]:
        """The widths of all levels as those of one MLP."""
        return [width for widths in self.levels for width in widths]

    @property
    def per_task(self) -> list[int]:
        """Experts of each task, where the network has such."""
        count = self.config.get("experts_per_task", {"ple": 1}.get(self.kind, 2))
        return [count] * self.tasks if isinstance(count, int) else list(count)

    @property
    def shared(self) -> int:
        """Shared experts, where the network has such."""
        return int(self.config.get("shared_experts", 0 if self.kind == "adatt_sp" else 1))

    def widened(self, width: int) -> "Case":
        """The same network with every layer `width` wide."""
        levels = [[width] * len(widths) for widths in self.levels]
        return Case({**self.config, "levels": levels}, self.tasks, self.is_lone_gate, self.given)

    def build(self, seed: int = 0, input_width: int = INPUT_WIDTH) -> nn.Module:
        """The network, its parameters drawn from the seed."""
        torch.manual_seed(seed)
        return self.ready(build_network(self.parsed, input_width, self.tasks, self.given))

    def network(self, tower: tuple[int, ...]) -> Network:
        """The network with task towers behind it, one output each."""
        config = NetworkConfig(fusion=self.parsed, tower=tower)
        return Network(config, INPUT_WIDTH, (1,) * self.tasks, self.given)

    def ready(self, module: nn.Module) -> nn.Module:
        """The module as the suite takes it. Of learned routing, what it promises holds in evaluation mode: policies
        are made as if learned, every module the choice of some task."""
        if isinstance(module, LearnedRouting):
            module.eval()
            for position, layer in module.routed_layers().items():
                tasks, modules = layer.policy_TM.shape
                chosen = functional.one_hot((torch.arange(tasks) + position) % modules, modules)
                layer.policy_TM.copy_((torch.rand(tasks, modules) + 2 * chosen) / (2 + modules))
        return module


def rows_of(count: int, seed: int = 1) -> Tensor:
    """rows_BD of both signs, some of them 0."""
    generator = torch.Generator().manual_seed(seed)
    rows_BD = torch.randn(count, INPUT_WIDTH, generator=generator)
    return torch.where(rows_BD.abs() < 0.1, 0.0, rows_BD)


def _case(tasks: int, kind: str, levels: list[Any], *, is_lone_gate: bool = False, **sizes: Any) -> Case:
    return Case({"kind": kind, "levels": levels, **sizes}, tasks, is_lone_gate)


def _chained(given: tuple[int | None, ...], levels: list[Any]) -> Case:
    return Case({"kind": "aitm", "levels": levels}, len(given), given=given)


ROUTED = "fixed_random_routing"
LEARNED = "learned_routing"
CASES = {
    "adatt-sp": _case(3, "adatt_sp", [5, 4], experts_per_task=2),
    "adatt-sp-one-task": _case(1, "adatt_sp", [5, 4], experts_per_task=2),
    "adatt-deep-unequal": _case(3, "adatt", [[6, 5], 4, [4, 3]], experts_per_task=[2, 1, 3], shared_experts=2),
    "adatt-no-shared": _case(2, "adatt", [5], shared_experts=0),
    "shared-bottom": _case(3, "shared_bottom", [6, 4]),
    "shared-bottom-deep": _case(2, "shared_bottom", [[6, 5], 4, [4, 3]]),
    "shared-bottom-one-task": _case(1, "shared_bottom", [5]),
    "mmoe": _case(3, "mmoe", [6], num_experts=4),
    "mmoe-deep": _case(2, "mmoe", [[6, 5], 4], num_experts=3),
    "mmoe-one-task": _case(1, "mmoe", [6, 4], num_experts=3),
    "mmoe-one-expert": _case(3, "mmoe", [6, 4], num_experts=1, is_lone_gate=True),
    "ml-mmoe": _case(3, "ml_mmoe", [6, 4], num_experts=4),
    "ml-mmoe-deep": _case(2, "ml_mmoe", [[6, 5], 4, [4, 3]], num_experts=3),
    "ml-mmoe-one-task": _case(1, "ml_mmoe", [5, 4], num_experts=2),
    "ml-mmoe-one-level": _case(3, "ml_mmoe", [[6, 4]], num_experts=2),
    "ple": _case(3, "ple", [6, 4]),
    "ple-deep-unequal": _case(3, "ple", [[6, 5], 4, [4, 3]], experts_per_task=[1, 3, 2], shared_experts=2),
    "ple-no-shared": _case(3, "ple", [6, 5, 4], experts_per_task=2, shared_experts=0),
    "ple-no-shared-one-expert": _case(2, "ple", [5, 4], shared_experts=0, is_lone_gate=True),
    "ple-one-level": _case(3, "ple", [6], experts_per_task=[2, 1, 2], shared_experts=3),
    "ple-one-task": _case(1, "ple", [5, 4], experts_per_task=2),
    "cross-stitch": _case(3, "cross_stitch", [6, 4]),
    "cross-stitch-deep": _case(2, "cross_stitch", [[6, 5], 4, [4, 3]]),
    "cross-stitch-one-task": _case(1, "cross_stitch", [5, 4]),
    "cross-stitch-one-level": _case(3, "cross_stitch", [5]),
    "no-sharing": _case(3, "no_sharing", [6, 4]),
    "no-sharing-deep": _case(2, "no_sharing", [[6, 5], 4, [4, 3]]),
    "no-sharing-one-task": _case(1, "no_sharing", [5]),
    "routing": _case(4, ROUTED, [6, 5, 4], num_modules=2, seed=3),
    "routing-deep": _case(3, ROUTED, [[6, 5], [4, 3]], num_modules=4, seed=1),
    "routing-chosen": _case(4, ROUTED, [6, 5, 4], num_modules=3, routed=[1], seed=2),
    "routing-first-then-shared": _case(3, ROUTED, [6, 4], num_modules=3, routed=[0]),
    "routing-nothing": _case(3, ROUTED, [6, 4], num_modules=3, routed=[]),
    "routing-one-module": _case(2, ROUTED, [6, 4], num_modules=1),
    "routing-one-task": _case(1, ROUTED, [5], num_modules=3),
    "learned-routing": _case(4, LEARNED, [6, 5, 4], num_modules=2),
    "learned-routing-clip-deep": _case(3, LEARNED, [[6, 5], [4, 3]], num_modules=3, policy="clip"),
    "learned-routing-chosen": _case(4, LEARNED, [6, 5, 4], num_modules=3, routed=[1], policy="as_published"),
    "learned-routing-first-then-shared": _case(3, LEARNED, [6, 4], num_modules=3, routed=[0]),
    "learned-routing-nothing": _case(3, LEARNED, [6, 4], num_modules=3, routed=[]),
    "learned-routing-one-task": _case(1, LEARNED, [5], num_modules=1),
    "aitm": _chained((None, 0, None), [6, 4]),
    "aitm-one-layer": _chained((1, None), [5]),
    "aitm-chains": _chained((1, None, 1, 0), [[6, 5], 4]),
}
