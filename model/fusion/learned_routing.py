"""Learned routing ("Re-examining Routing Networks for Multi-task Learning", sections 2.2 and A.1). Scripted in
evaluation mode by TorchScript.

In: rows_BD. Out: fused_BTH. A routed layer holds M modules (Linear and ReLU) and a tabular policy: for each task a
distribution over them. Training draws a module per row, task and routed layer, and computes that module alone;
evaluation takes each task's most probable one. A layer that is not routed has one module for all tasks. The policies
are learned from rewards (training/routing.py), not by the gradient of the loss.

Shapes: B rows, T tasks, P paths at a layer (1 below the first routed layer, T above it), M modules, D input, H width.
"""

from typing import Annotated, Literal, Self, cast

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from model.fusion.experts import ExpertLinear
from model.fusion.levels import Levels, all_widths
from model.fusion.slots import Slots, linear_slots
from model.strict_yaml import StrictModel

PolicyKind = Literal["softmax", "clip", "as_published"]
# The published code's guard against a sum of 0 (A.1).
PUBLISHED_EPSILON = 1e-6


class LearnedRoutingConfig(StrictModel):
    """Sizes of a learned routing network, and how its policies are learned.

    `routed` names the layers that are routed (from 0; default: all). `policy` is how a table of numbers becomes
    probabilities: `softmax` (the paper's improved variant; no module is ever out of reach), `clip` (the projection that
    the algorithm asks for), or `as_published` (the projection of the public code, to show its fault). `reward` is +1
    for a right answer and -1 for a wrong one, as published, or the log-likelihood of the label. For the first
    `warm_up_epochs` tasks share every module and no policy is learned."""

    kind: Literal["learned_routing"]
    levels: Levels
    num_modules: PositiveInt
    routed: tuple[int, ...] | None = None
    policy: PolicyKind = "softmax"
    reward: Literal["correct", "log_likelihood"] = "correct"
    # The paper's router learns at 2e-2, its modules far slower.
    policy_learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.02
    policy_optimizer: Literal["adam", "sgd"] = "adam"
    reward_history: Annotated[float, Field(gt=0, le=1)] = 0.05
    warm_up_epochs: NonNegativeInt = 0

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
    that is None, from torch's global generator; the layers keep what was drawn. `is_warm_up` shares every draw."""

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


class RoutedLayer(nn.Module):
    """M modules and, per task, a policy over them; `policy_TM` starts even for all."""

    def __init__(self, input_width: int, width: int, num_tasks: int, num_modules: int, kind: PolicyKind) -> None:
        super().__init__()
        self.choices = ExpertLinear(num_modules, input_width, width)
        # No gradient of the loss: rewards alone move a policy, by an optimizer of its own.
        self.policy_TM = nn.Parameter(torch.full((num_tasks, num_modules), 1.0 / num_modules), requires_grad=False)
        self.kind: str = kind
        self.drawn_BT: Tensor = torch.empty(0, dtype=torch.int64)

    def forward(self, paths_BPD: Tensor) -> Tensor:
        """paths_BTH, each task along its most probable module (of equals the first)."""
        route_T = self.policy_TM.argmax(dim=1)
        weight_TDH = self.choices.weight_EDH.index_select(0, route_T)
        bias_T1H = self.choices.bias_E1H.index_select(0, route_T)
        paths_TBD = paths_BPD.transpose(0, 1).expand(route_T.shape[0], -1, -1)
        return torch.relu(torch.baddbmm(bias_T1H, paths_TBD, weight_TDH).transpose(0, 1))

    @torch.jit.unused
    def draw(self, num_rows: int, generator: torch.Generator | None, *, is_shared: bool) -> None:
        """Draws `drawn_BT`; shared: one module for all tasks of a row, each as likely, so that all of them learn."""
        num_tasks, num_modules = self.policy_TM.shape
        if is_shared:
            device = self.policy_TM.device
            one_B1 = torch.randint(num_modules, (num_rows, 1), generator=generator, device=device)
            self.drawn_BT = one_B1.expand(-1, num_tasks)
        elif num_rows:
            chances_TM = probabilities(self.policy_TM, self.kind)
            self.drawn_BT = torch.multinomial(chances_TM, num_rows, replacement=True, generator=generator).t()
        else:
            self.drawn_BT = torch.empty(0, num_tasks, dtype=torch.int64, device=self.policy_TM.device)

    @torch.jit.unused
    def along_drawn(self, paths_BPD: Tensor) -> Tensor:
        """paths_BTH along the drawn modules; each module computes the rows that drew it and no others."""
        num_rows, num_tasks = self.drawn_BT.shape
        drawn = self.drawn_BT.reshape(-1)
        order = drawn.argsort(stable=True)
        # A row's tasks read one path below the first routed layer, then each its own.
        source = order if paths_BPD.shape[1] == num_tasks else order // num_tasks
        sorted_paths = paths_BPD.reshape(-1, paths_BPD.shape[2]).index_select(0, source)
        counts: list[int] = torch.bincount(drawn, minlength=self.policy_TM.shape[1]).tolist()
        outputs = [
            torch.addmm(bias_1H, inputs, weight_DH)
            for inputs, weight_DH, bias_1H in zip(
                torch.split_with_sizes(sorted_paths, counts),
                self.choices.weight_EDH,
                self.choices.bias_E1H,
                strict=True,
            )
        ]
        unsorted = torch.relu(torch.cat(outputs)).index_select(0, order.argsort())
        return unsorted.view(num_rows, num_tasks, unsorted.shape[1])


def probabilities(policy_TM: Tensor, kind: str) -> Tensor:
    """The distributions that a table of policies stands for; differentiable."""
    if kind == "softmax":
        return torch.softmax(policy_TM, dim=1)
    # A `clip` table is kept on the simplex by the projection after each step, so it is its own distribution.
    return published_projection(policy_TM) if kind == "as_published" else policy_TM


def simplex_projection(policy_TM: Tensor) -> Tensor:
    """clip(pi) / sum(clip(pi)) with clip(x) = max(0, min(1, x)) (A.1); even where every entry is clipped to 0."""
    clipped_TM = policy_TM.clamp(0.0, 1.0)
    sums_T1 = clipped_TM.sum(dim=1, keepdim=True)
    return torch.where(sums_T1 > 0, clipped_TM / sums_T1, 1.0 / policy_TM.shape[1])


def published_projection(policy_TM: Tensor) -> Tensor:
    """What the public code computes instead: (pi - min(pi) + eps), normalised.

    Its fault: where a policy is even, as it is at the start, its derivative is about 1 / eps, so the first step throws
    the policy to an extreme; and the least probable module has a probability of about eps, hardly ever drawn again."""
    shifted_TM = policy_TM - policy_TM.min(dim=1, keepdim=True).values + PUBLISHED_EPSILON
    return shifted_TM / shifted_TM.sum(dim=1, keepdim=True)


def policy_perplexities(fusion: nn.Module) -> dict[int, float]:
    """Per routed layer the mean over tasks of exp(entropy): 1 is decided, M even; empty for other networks."""
    if not isinstance(fusion, LearnedRouting):
        return {}
    found: dict[int, float] = {}
    for position, layer in fusion.routed_layers().items():
        chances_TM = probabilities(layer.policy_TM.double(), layer.kind)
        found[position] = cast(float, torch.special.entr(chances_TM).sum(dim=1).exp().mean().item())
    return found
