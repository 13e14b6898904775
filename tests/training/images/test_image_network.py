"""The convolutional network: each row along its own task's modules and no others, routes that stay, draws that follow
the policies."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional

from model.fusion.chosen_modules import apply_by_module
from model.fusion.policy import Policy
from training.images.network import ChosenModules, FixedRoute, ImageNetwork, Method, TrunkConfig

TASKS, CLASSES = 4, 3
TRUNK = TrunkConfig(convolutions=(5, 6), fully_connected=(7,))
LAYERS = ["conv1", "conv2", "fc1"]


def network(seed: int = 0, trunk: TrunkConfig = TRUNK, **method: Any) -> ImageNetwork:
    """A network for images of 2 x 8 x 9, with weights and routes from `seed`."""
    parsed: Method = TypeAdapter(Method).validate_python(method)
    torch.manual_seed(seed)
    return ImageNetwork(trunk, parsed, (2, 8, 9), TASKS, CLASSES, seed)


def rows_of(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 2, 8, 9, generator=generator), torch.randint(TASKS, (count,), generator=generator)


def layer_of(module: ImageNetwork, name: str) -> ChosenModules:
    layer = module.layers[LAYERS.index(name)]
    assert isinstance(layer, ChosenModules)
    return layer


METHODS: list[dict[str, Any]] = [
    {"kind": "shared_bottom"},
    {"kind": "no_sharing"},
    {"kind": "fixed_random_routing", "num_modules": 3},
    {"kind": "fixed_random_routing", "routed": ["conv2"], "num_modules": 2},
    {"kind": "learned_routing", "num_modules": 3},
    {"kind": "learned_routing", "routed": ["conv1", "fc1"]},
]


@pytest.mark.parametrize("kind", [nn.Conv2d(2, 3, 3, padding=1), nn.Linear(9, 4)])
@pytest.mark.parametrize("with_source", [False, True])
def test_grouping_by_module_is_a_loop_over_rows(kind: nn.Module, with_source: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    modules = [copy.deepcopy(kind) for _ in range(5)]
    for number, module in enumerate(modules):
        for parameter in module.parameters():
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))
    inputs = torch.rand(20, 2, 8, 9, generator=generator)
    # Module 3 is nobody's choice.
    module_N = torch.tensor([0, 1, 2, 4])[torch.randint(4, (30 if with_source else 20,), generator=generator)]
    source_N = torch.randint(20, (30,), generator=generator) if with_source else None
    found = apply_by_module(inputs, source_N, module_N, modules)
    for number, (chosen, output) in enumerate(zip(module_N.tolist(), found, strict=True)):
        row = inputs[number if source_N is None else int(source_N[number])]
        # Another batch size may sum a convolution in another order.
        torch.testing.assert_close(output, modules[chosen](row.unsqueeze(0))[0], rtol=1e-5, atol=1e-5)


def by_row(module: ImageNetwork, image_CHW: Tensor, task: int, routes: dict[str, Tensor]) -> Tensor:
    """One row's logits, written out from the weights. Batch normalisation by its running statistics."""
    rows = image_CHW.unsqueeze(0)
    for name in LAYERS:
        layer = layer_of(module, name)
        chosen = layer.choices[int(routes[name][task]) if name in routes else 0]
        state = chosen.state_dict()
        if name.startswith("conv"):
            rows = functional.conv2d(rows, state["convolution.weight"], state["convolution.bias"], padding=1)
            shift, scale = state["norm.running_mean"], (state["norm.running_var"] + 1e-5).sqrt()
            rows = (rows - shift.view(-1, 1, 1)) / scale.view(-1, 1, 1)
            rows = rows * state["norm.weight"].view(-1, 1, 1) + state["norm.bias"].view(-1, 1, 1)
            height, width = rows.shape[2] // 2, rows.shape[3] // 2
            rows = rows.clamp(min=0)[:, :, : 2 * height, : 2 * width]
            rows = rows.view(1, -1, height, 2, width, 2).amax(dim=(3, 5))
        else:
            rows = (rows.flatten(1) @ state["linear.weight"].T + state["linear.bias"]).clamp(min=0)
    last = module.head.choices[task].state_dict()
    logits_L: Tensor = (rows @ last["linear.weight"].T + last["linear.bias"])[0]
    return logits_L


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_each_row_follows_its_own_tasks_route(method: dict[str, Any]) -> None:
    module = network(**method)
    images_BCHW, task_B = rows_of(24)
    # Running statistics that are not those of a new network, apart for each module.
    for _ in range(3):
        module.train()(images_BCHW, task_B)
    for number, policy in enumerate(module.policies().values()):
        policy.policy_TM.copy_(torch.rand(policy.policy_TM.shape, generator=torch.Generator().manual_seed(number)))
    routes = {}
    for name in LAYERS:
        choice = layer_of(module, name).choice
        routes[name] = choice.route_T if isinstance(choice, FixedRoute) else choice.policy_TM.argmax(dim=1)
    module.eval()
    with torch.no_grad():
        logits_BL = module(images_BCHW, task_B)
    for image, task, logits_L in zip(images_BCHW, task_B.tolist(), logits_BL, strict=True):
        torch.testing.assert_close(logits_L, by_row(module, image, task, routes), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_rows_loss_reaches_its_own_route_alone(method: dict[str, Any]) -> None:
    module = network(**method).train()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            # By statistics of the batch a shared layer would carry a row's loss into what other rows passed below it.
            norm.eval()
    images_BCHW, task_B = rows_of(16)
    is_first_B = task_B == 0
    logits_BL = module(images_BCHW, task_B)
    loss = functional.cross_entropy(logits_BL[is_first_B], torch.arange(16)[is_first_B] % CLASSES)
    loss.backward()  # type: ignore[no-untyped-call]
    for layer in (*module.layers, module.head):
        assert isinstance(layer, ChosenModules)
        choice = layer.choice
        if isinstance(choice, FixedRoute):
            used = {int(choice.route_T[0])}
        else:
            used = set(choice.drawn_BT[is_first_B, 0].tolist())
        for number, chosen in enumerate(layer.choices):
            gradients = [p.grad.abs().max() for p in chosen.parameters() if p.grad is not None]
            assert (max(gradients, default=torch.tensor(0.0)) > 0) == (number in used)


def test_rows_draw_from_the_policy_of_their_task() -> None:
    module = network(kind="learned_routing", routed=["fc1"], num_modules=3).train()
    policy = module.policies()["fc1"]
    # Task t always takes module t mod 3.
    policy.policy_TM.copy_(100 * functional.one_hot(torch.arange(TASKS) % 3, 3))
    layer = layer_of(module, "fc1")
    with torch.no_grad():
        for parameter in layer.choices[1].parameters():
            parameter.fill_(torch.nan)
    images_BCHW, task_B = rows_of(32)
    logits_BL = module(images_BCHW, task_B)
    assert torch.equal(logits_BL.isnan().all(dim=1), task_B % 3 == 1)
    # In the warm-up the task says nothing.
    module.is_warm_up = True
    spoilt_B = module(images_BCHW, task_B).isnan().all(dim=1)
    assert 0 < int(spoilt_B[task_B % 3 == 1].sum()) < int((task_B % 3 == 1).sum())
    assert int(spoilt_B[task_B % 3 != 1].sum()) > 0


def test_draws_follow_the_generator() -> None:
    module = network(kind="learned_routing", num_modules=3).train()
    rows = rows_of(20)
    drawn = []
    for seed in (5, 5, 6):
        module.generator = torch.Generator().manual_seed(seed)
        torch.rand(seed)  # whatever else was drawn meanwhile
        module(*rows)
        drawn.append(torch.cat([policy.drawn_BT for policy in module.policies().values()]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_fixed_routes_come_from_the_seed_and_stay() -> None:
    def routes(module: ImageNetwork) -> list[list[int]]:
        found = []
        for name in LAYERS:
            choice = layer_of(module, name).choice
            assert isinstance(choice, FixedRoute)
            found.append(choice.route_T.tolist())
        return found

    method: dict[str, Any] = {"kind": "fixed_random_routing", "num_modules": 4}
    module = network(3, **method)
    before = routes(module)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for step in range(3):
        logits_BL = module.train()(*rows_of(12, step))
        optimizer.zero_grad()
        logits_BL.square().sum().backward()
        optimizer.step()
    assert routes(module) == before == routes(network(3, **method))
    assert len({str(routes(network(seed, **method))) for seed in range(6)}) == 6
    # A layer that is not routed has one module.
    only = network(3, kind="fixed_random_routing", routed=["conv2"], num_modules=4)
    assert [len(layer_of(only, name).choices) for name in ("conv1", "fc1")] == [1, 1]


def test_sizes_are_those_of_the_methods() -> None:
    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)

    # By hand: weights, biases, and a scale and a shift for each filter. 8 x 9 pixels become 4 x 4, then 2 x 2.
    conv1, conv2, fc1, last = 5 * 2 * 9 + 3 * 5, 6 * 5 * 9 + 3 * 6, 7 * 24 + 7, 3 * 7 + 3
    assert count(network(kind="shared_bottom")) == conv1 + conv2 + fc1 + 4 * last
    assert count(network(kind="no_sharing")) == 4 * (conv1 + conv2 + fc1 + last)
    assert count(network(kind="learned_routing", routed=["conv1"])) == 4 * conv1 + conv2 + fc1 + 4 * last
    assert count(network(kind="learned_routing", routed=["fc1"], num_modules=9)) == conv1 + conv2 + 9 * fc1 + 4 * last


def test_modules_without_rows_keep_finite_statistics() -> None:
    module = network(kind="no_sharing").train()
    images_BCHW, _ = rows_of(6)
    module(images_BCHW, torch.zeros(6, dtype=torch.int64)).sum().backward()
    assert all(bool(torch.isfinite(value).all()) for value in module.state_dict().values())
    assert np.isfinite(sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None))


def test_images_too_small_for_the_trunk_are_refused() -> None:
    with pytest.raises(ValueError, match="4 layers halve images of 8 x 9 pixels to nothing"):
        network(trunk=TrunkConfig(convolutions=(4, 4, 4, 4)), kind="shared_bottom")


def test_a_policy_is_apart_from_the_modules() -> None:
    module = network(kind="learned_routing", routed=["conv1"], num_modules=2)
    assert list(module.policies()) == ["conv1"]
    assert isinstance(layer_of(module, "conv1").choice, Policy)
    assert not module.policies()["conv1"].policy_TM.requires_grad
