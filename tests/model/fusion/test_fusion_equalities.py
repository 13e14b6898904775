"""Equalities between networks, and what reordering the tasks does: truths that need no numbers."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.fusion.routing import FixedRouting
from tests.model.fusion.cases import CASES, INPUT_WIDTH, Case, rows_of
from tests.model.fusion.equations import Mlp, routes_of, weights_of

Sizes = dict[str, Any]


def build(kind: str, levels: list[Any], tasks: int, *, seed: int = 0, **sizes: Any) -> nn.Module:
    """A network of the given kind."""
    return Case({"kind": kind, "levels": levels, **sizes}, tasks).build(seed)


def restored(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """The module with these weights: all of them and no others."""
    module.load_state_dict(weights)
    return module


def assert_same(mine: Tensor, theirs: Tensor) -> None:
    """Equal but for the order of float32 sums."""
    torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize("levels", [[6], [6, 4], [[6, 5], 4]])
def test_mmoe_is_ml_mmoe_with_one_level(levels: list[Any]) -> None:
    """Whose experts' MLP is as deep as all levels of MMoE."""
    widths = Case({"levels": levels}, 3).widths
    one_level = build("ml_mmoe", [widths], 3, num_experts=4)
    mmoe = restored(build("mmoe", levels, 3, num_experts=4, seed=9), one_level.state_dict())
    assert torch.equal(mmoe(rows_of(9)), one_level(rows_of(9)))


def test_mmoe_is_one_level_of_adatt_without_native_experts() -> None:
    """Every gate of both reads the row and mixes all experts. Only the names of the gates differ."""
    mmoe = build("mmoe", [6, 4], 3, num_experts=6)
    names = {name: name.replace("gates.", "gates.0.") for name in mmoe.state_dict()}
    adatt = build("adatt_sp", [[6, 4]], 3, experts_per_task=2, native_experts=False, seed=9)
    restored(adatt, {names[name]: value for name, value in mmoe.state_dict().items()})
    assert_same(adatt(rows_of(9)), mmoe(rows_of(9)))


def test_ple_with_one_level_is_cgc() -> None:
    """Tang et al. 2020, Equations 1 to 3: y_k = w_k(x) S_k(x), S_k the task's own and the shared experts stacked."""
    case = CASES["ple-one-level"]
    module, x = case.build(), rows_of(9).double().numpy()
    state = {name: value.detach().double().numpy() for name, value in module.named_parameters()}
    (level,) = weights_of(case, state)
    experts = [np.maximum(x @ weight.T + bias, 0.0) for ((weight, bias),) in level.experts]
    bounds = np.cumsum([0, *case.per_task])
    for task, (weight, bias) in enumerate(level.gates):
        selected = np.stack([*experts[bounds[task] : bounds[task + 1]], *experts[bounds[-1] :]], axis=1)
        powers = np.exp(x @ weight.T + bias)
        weighting = powers / powers.sum(axis=1, keepdims=True)
        expected = np.einsum("bs,bsh->bh", weighting, selected)
        np.testing.assert_allclose(module(rows_of(9))[:, task].detach().numpy(), expected, atol=5e-6, rtol=0)


def test_ple_without_shared_experts_and_with_one_per_task_is_no_sharing() -> None:
    """A gate over one expert gives it all the weight."""
    case = Case({"kind": "ple", "levels": [[6, 5], 4], "shared_experts": 0}, 3)
    other = Case({"kind": "no_sharing", "levels": [[6, 5], 4]}, 3)
    ple, alone = case.build(), other.build()
    _copy_experts(_mlps(case, ple), _mlps(other, alone))
    assert_same(ple(rows_of(9)), alone(rows_of(9)))


def test_cross_stitch_with_identity_stitches_is_no_sharing() -> None:
    case = Case({"kind": "cross_stitch", "levels": [[6, 5], 4]}, 3)
    other = Case({"kind": "no_sharing", "levels": [[6, 5], 4]}, 3)
    stitched, alone = case.build(), other.build()
    _copy_experts(_mlps(case, stitched), _mlps(other, alone))
    with torch.no_grad():
        for name, parameter in stitched.named_parameters():
            if name.startswith("stitches"):
                parameter.copy_(torch.eye(3))
    assert_same(stitched(rows_of(9)), alone(rows_of(9)))


def _mlps(case: Case, module: nn.Module) -> list[Mlp]:
    """Expert 0's layers of all levels, expert 1's, ...: views of the module's parameters."""
    levels = weights_of(case, module.state_dict())
    return [list(itertools.chain(*parts)) for parts in zip(*(level.experts for level in levels), strict=True)]


def _copy_experts(sources: list[Mlp], targets: list[Mlp]) -> None:
    for source, target in zip(sources, targets, strict=True):
        for (weight, bias), (new_weight, new_bias) in zip(target, source, strict=True):
            weight.copy_(new_weight)
            bias.copy_(new_bias)


@pytest.mark.parametrize("sizes", [{"num_modules": 3, "routed": []}, {"num_modules": 1}])
def test_routing_with_nothing_to_choose_is_shared_bottom(sizes: Sizes) -> None:
    shared = build("shared_bottom", [[6, 5], 4], 3)
    names = {name: name.replace(".weight", ".linears.0.weight").replace(".bias", ".linears.0.bias")
             for name in shared.state_dict()}  # fmt: skip
    routed = build("fixed_random_routing", [[6, 5], 4], 3, seed=9, **sizes)
    restored(routed, {names[name]: value for name, value in shared.state_dict().items()})
    assert_same(routed(rows_of(9)), shared(rows_of(9)))


def test_routing_with_a_module_for_each_task_is_no_sharing() -> None:
    torch.manual_seed(0)
    routed, alone = FixedRouting(INPUT_WIDTH, [6, 4], [[0, 1, 2], [0, 1, 2]]), build("no_sharing", [6, 4], 3)
    state = routed.state_dict()
    modules = [
        [(state[f"layers.{at}.linears.{task}.weight"], state[f"layers.{at}.linears.{task}.bias"]) for at in range(2)]
        for task in range(3)
    ]
    _copy_experts(modules, _mlps(CASES["no-sharing"], alone))
    assert_same(routed(rows_of(9)), alone(rows_of(9)))


@pytest.mark.parametrize("kind", ["shared_bottom", "no_sharing"])
def test_one_task_is_a_plain_mlp(kind: str) -> None:
    """torch's own Linear and ReLU."""
    module = build(kind, [[6, 5], 4], 1)
    (layers,) = _mlps(Case({"kind": kind, "levels": [[6, 5], 4]}, 1), module)
    hidden = rows_of(9)
    for weight, bias in layers:
        hidden = torch.relu(functional.linear(hidden, weight, bias))
    assert_same(module(rows_of(9))[:, 0], hidden)


def test_adatt_with_one_task_and_one_expert_is_an_mlp_doubled_at_every_level() -> None:
    """Its only gate weight is 1 and its native weight is 1. Without the latter it is the MLP itself."""
    shared = build("shared_bottom", [6, 5, 4], 1)
    plain = shared.state_dict()
    for native, factor in ((True, 2.0), (False, 1.0)):
        adatt = build("adatt_sp", [6, 5, 4], 1, experts_per_task=1, native_experts=native, seed=9)
        state = adatt.state_dict()
        for at in range(3):
            # ReLU is homogeneous: what a level doubles, the next one's weights may halve.
            state[f"levels.{at}.experts.first.0.weight"] = plain[f"layers.{at}.weight"] / (factor if at else 1.0)
            state[f"levels.{at}.experts.first.0.bias"] = plain[f"layers.{at}.bias"]
        assert_same(restored(adatt, state)(rows_of(9)), factor * shared(rows_of(9)))


def test_adatt_with_one_task_is_a_stack_of_mlps_and_a_gate() -> None:
    """Two experts, two levels, in torch's own layers: h <- sum_m (softmax(W h + b)_m + v_m) relu(W_m h + b_m)."""
    adatt = build("adatt_sp", [6, 4], 1, experts_per_task=2)
    state, hidden = adatt.state_dict(), rows_of(9)
    for level, width in enumerate((6, 4)):
        names = [f"levels.{level}.experts.first.0", f"levels.{level}.gates.0"]
        both, gate = (functional.linear(hidden, state[f"{n}.weight"], state[f"{n}.bias"]) for n in names)
        weights = torch.softmax(gate, dim=1) + state[f"levels.{level}.native_weights"]
        experts = torch.relu(both)
        hidden = weights[:, :1] * experts[:, :width] + weights[:, 1:] * experts[:, width:]
    assert_same(adatt(rows_of(9))[:, 0], hidden)


def test_adatt_with_uniform_gates_is_the_mean_and_the_native_experts() -> None:
    case = Case({"kind": "adatt_sp", "levels": [6], "experts_per_task": 2}, 3)
    adatt = case.build()
    state = adatt.state_dict()
    for name in ("weight", "bias"):
        state[f"levels.0.gates.0.{name}"].zero_()
    linear = (state[f"levels.0.experts.first.0.{name}"] for name in ("weight", "bias"))
    experts_BTMH = torch.relu(functional.linear(rows_of(9), *linear)).view(9, 3, 2, 6)
    native_TM1 = state["levels.0.native_weights"].view(3, 2, 1)
    expected = experts_BTMH.mean(dim=(1, 2)).unsqueeze(1) + (native_TM1 * experts_BTMH).sum(dim=2)
    assert_same(adatt(rows_of(9)), expected)


REORDERED = [name for name, case in CASES.items() if case.tasks > 1 and case.kind in
             ("mmoe", "ml_mmoe", "ple", "cross_stitch", "no_sharing")]  # fmt: skip


@pytest.mark.parametrize("name", REORDERED)
def test_reordering_tasks_reorders_the_outputs(name: str) -> None:
    """AdaTT's is in test_adatt.py."""
    case = CASES[name]
    order = [*range(1, case.tasks), 0]
    config = dict(case.config)
    units = [1] * case.tasks
    if case.kind == "ple":
        config["experts_per_task"] = [case.per_task[task] for task in order]
        units = [*case.per_task, *([case.shared] if case.shared else [])]
    starts = np.cumsum([0, *units])
    unit_order = [*order, *range(case.tasks, len(units))]
    # Where tasks own the experts, these follow. MMoE's belong to no task.
    owned = [expert for unit in unit_order for expert in range(starts[unit], starts[unit + 1])]
    module, permuted = case.build(), Case(config, case.tasks)
    other = permuted.build(seed=9)
    sources, targets = weights_of(case, module.state_dict()), weights_of(permuted, other.state_dict())
    for position, (source, target) in enumerate(zip(sources, targets, strict=True)):
        is_last = position == len(sources) - 1
        expert_order = range(len(source.experts)) if case.kind in ("mmoe", "ml_mmoe") else owned
        _copy_experts([source.experts[expert] for expert in expert_order], target.experts)
        for unit, (weight, bias) in enumerate(target.gates):
            if case.kind == "ple":
                of_unit, columns = unit_order[unit], (slice(None) if unit < case.tasks else owned)
            else:
                of_unit, columns = (order[unit] if is_last else unit), slice(None)
            weight.copy_(source.gates[of_unit][0][columns])
            bias.copy_(source.gates[of_unit][1][columns])
        if target.stitch is not None:
            target.stitch.copy_(source.stitch[order][:, order])
    assert_same(other(rows_of(9)), module(rows_of(9))[:, order])


@pytest.mark.parametrize("name", ["routing", "routing-deep", "routing-chosen"])
def test_reordering_routes_reorders_the_outputs(name: str) -> None:
    case = CASES[name]
    order = [*range(1, case.tasks), 0]
    routes = [[modules[task] for task in order] for modules in routes_of(case)]
    module = case.build()
    other = restored(FixedRouting(INPUT_WIDTH, case.widths, routes), module.state_dict())
    assert_same(other(rows_of(9)), module(rows_of(9))[:, order])
