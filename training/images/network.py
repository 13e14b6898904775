"""The convolutional network of the second paper, section 3.2: each row follows the route of its own task.

In: images_BCHW and the task of each row. Out: logits_BL, over the classes of that task. Convolutions (3 x 3, batch
normalisation, ReLU, then 2 x 2 max pooling as in the public code), fully connected layers with ReLU, and an unshared
last layer. Any layer but the last may be shared, unshared, or routed, by routes that are drawn once or learned.
A module is a whole convolution with its own batch normalisation, over the rows that it computes, or a fully connected
layer.

Shapes: B rows, C channels, H by W pixels, T tasks, M modules, L classes of a task.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field, PositiveInt, model_validator
from torch import Tensor, nn

from model.fusion.chosen_modules import apply_by_module
from model.fusion.policy import Policy, PolicyConfig
from model.fusion.routing import random_routes
from model.strict_yaml import StrictModel, refuse_unknown_kind, unknown_key

POOLING = 2


class TrunkConfig(StrictModel):
    """Filters of the convolutions conv1, conv2, ..., and hidden units of the fully connected layers fc1, fc2, .... The
    unshared last layer comes on top."""

    convolutions: tuple[PositiveInt, ...] = (32, 32, 32)
    fully_connected: tuple[PositiveInt, ...] = (64, 64, 64)

    @property
    def layers(self) -> list[str]:
        """The names of the layers that may be routed, in order."""
        convolutions = [f"conv{number}" for number in range(1, len(self.convolutions) + 1)]
        return convolutions + [f"fc{number}" for number in range(1, len(self.fully_connected) + 1)]

    @model_validator(mode="after")
    def _check(self) -> "TrunkConfig":
        if not self.layers:
            raise ValueError("no layer is left; give convolutions or fully_connected at least one width")
        return self


class SharedBottomMethod(StrictModel):
    """One module a layer, for all tasks."""

    kind: Literal["shared_bottom"]


class NoSharingMethod(StrictModel):
    """A network of its own for each task."""

    kind: Literal["no_sharing"]


class RoutedMethod(StrictModel):
    """`routed` names the layers that are routed (default: all). Each has `num_modules` (default: one per task)."""

    routed: tuple[str, ...] | None = None
    num_modules: PositiveInt | None = None


class FixedRandomMethod(RoutedMethod):
    """Each task draws a module per routed layer once, from the seed, and keeps it."""

    kind: Literal["fixed_random_routing"]


class LearnedMethod(RoutedMethod, PolicyConfig):
    """Each task has a policy over the modules of a routed layer, learned from rewards."""

    kind: Literal["learned_routing"]


METHODS = ["shared_bottom", "no_sharing", "fixed_random_routing", "learned_routing"]
Method = Annotated[
    SharedBottomMethod | NoSharingMethod | FixedRandomMethod | LearnedMethod,
    Field(discriminator="kind"),
    BeforeValidator(lambda data: refuse_unknown_kind(data, METHODS, "method")),
]


def check_layers(method: Method, trunk: TrunkConfig) -> None:
    """Raise ValueError where a method routes a layer that the trunk has not."""
    if isinstance(method, RoutedMethod):
        for name in method.routed or ():
            if name not in trunk.layers:
                raise ValueError("routed: " + unknown_key(name, trunk.layers, "layer"))


class ImageNetwork(nn.Module):
    """images_BCHW, task_B -> logits_BL. In training mode the policies draw, from `generator` where it is set. During
    the warm-up (`is_warm_up`) they draw each module as likely, for every task."""

    def __init__(
        self,
        trunk: TrunkConfig,
        method: Method,
        image_shape: tuple[int, int, int],
        num_tasks: int,
        num_classes: int,
        seed: int,
    ) -> None:
        """`image_shape`: channels, height, width. Raises ValueError where the images are too small for the trunk."""
        super().__init__()
        choices = _choices(trunk, method, num_tasks, seed)
        channels, height, width = image_shape
        layers: list[ChosenModules] = []
        for filters in trunk.convolutions:
            layers.append(ChosenModules(partial(_Convolution, channels, filters), choices[len(layers)]))
            channels, height, width = filters, height // POOLING, width // POOLING
        if not height or not width:
            raise ValueError(
                f"network.convolutions: {len(trunk.convolutions)} layers halve images of {image_shape[1]} x "
                f"{image_shape[2]} pixels to nothing; give fewer"
            )
        features = channels * height * width
        for units in trunk.fully_connected:
            layers.append(ChosenModules(partial(_FullyConnected, features, units), choices[len(layers)]))
            features = units
        self.layers = nn.ModuleList(layers)
        self.head = ChosenModules(partial(_Last, features, num_classes), FixedRoute(list(range(num_tasks))))
        self._names = trunk.layers
        self.generator: torch.Generator | None = None
        self.is_warm_up = False
        # Convolutions of a CPU take about half as long where a pixel's channels lie side by side.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images_BCHW: Tensor, task_B: Tensor) -> Tensor:
        """logits_BL of each row's own task."""
        rows = images_BCHW.contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            assert isinstance(layer, ChosenModules)
            if isinstance(layer.choice, Policy) and self.training:
                layer.choice.draw(len(rows), self.generator, is_shared=self.is_warm_up)
            rows = layer(rows, task_B)
        logits_BL: Tensor = self.head(rows, task_B)
        return logits_BL

    def policies(self) -> dict[str, Policy]:
        """The learned policies by their layer's name."""
        named = zip(self._names, self.layers, strict=True)
        return {name: layer.choice for name, layer in named if isinstance(layer.choice, Policy)}


class FixedRoute(nn.Module):
    """The module of each task, for good."""

    route_T: Tensor

    def __init__(self, route: Sequence[int]) -> None:
        super().__init__()
        # Modules that no task drew are not built: those that are count from 0.
        drawn = sorted(set(route))
        self.num_modules = len(drawn)
        self.register_buffer("route_T", torch.tensor([drawn.index(module) for module in route]))


class ChosenModules(nn.Module):
    """The modules of a layer and how a row's task chooses one. It is a fixed route, or a policy's last draw (in
    evaluation its most probable module, of equals the first)."""

    def __init__(self, make: Callable[[], nn.Module], choice: FixedRoute | Policy) -> None:
        super().__init__()
        self.choice = choice
        count = choice.num_modules if isinstance(choice, FixedRoute) else choice.policy_TM.shape[1]
        self.choices = nn.ModuleList([make() for _ in range(count)])

    def forward(self, rows: Tensor, task_B: Tensor) -> Tensor:
        """Each row behind its module."""
        if len(self.choices) == 1:
            only: Tensor = self.choices[0](rows)
            return only
        if isinstance(self.choice, FixedRoute):
            module_B = self.choice.route_T[task_B]
        elif self.training:
            module_B = self.choice.drawn_BT.gather(1, task_B.unsqueeze(1)).squeeze(1)
        else:
            module_B = self.choice.policy_TM.argmax(dim=1)[task_B]
        return apply_by_module(rows, None, module_B, list(self.choices))


class _Convolution(nn.Module):
    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, filters, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm2d(filters)
        self.pool = nn.MaxPool2d(POOLING)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        if not len(images_BCHW):
            # Nothing to count for the normalisation, whose running means would become NaN.
            return self.pool(self.convolution(images_BCHW))  # type: ignore[no-any-return]
        return self.pool(torch.relu(self.norm(self.convolution(images_BCHW))))  # type: ignore[no-any-return]


class _FullyConnected(nn.Module):
    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, units)

    def forward(self, rows: Tensor) -> Tensor:
        return torch.relu(self.linear(rows.flatten(1)))


class _Last(nn.Module):
    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, num_classes)

    def forward(self, rows: Tensor) -> Tensor:
        return self.linear(rows.flatten(1))  # type: ignore[no-any-return]


def _choices(trunk: TrunkConfig, method: Method, num_tasks: int, seed: int) -> list[FixedRoute | Policy]:
    """Choices of each layer of the trunk."""
    match method:
        case SharedBottomMethod():
            return [FixedRoute([0] * num_tasks) for _ in trunk.layers]
        case NoSharingMethod():
            return [FixedRoute(list(range(num_tasks))) for _ in trunk.layers]
    is_routed = [method.routed is None or name in method.routed for name in trunk.layers]
    num_modules = method.num_modules or num_tasks
    if isinstance(method, FixedRandomMethod):
        return [FixedRoute(route) for route in random_routes(seed, num_tasks, num_modules, is_routed)]
    return [
        Policy(num_tasks, num_modules, method.policy) if routed else FixedRoute([0] * num_tasks) for routed in is_routed
    ]
