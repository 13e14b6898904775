"""Contract of every fusion network, whatever its kind and size: rows_BD -> fused_BTH, scripted, row by row."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.model.fusion.cases import CASES, INPUT_WIDTH, Case, rows_of
from tests.model.fusion.scripted import reloaded_where_equal

all_networks = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
gated_networks = pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name) for name, case in CASES.items() if case.kind in ("mmoe", "ml_mmoe", "ple", "aitm")],
)


@all_networks
def test_output_has_a_row_per_task_of_the_last_width(case: Case) -> None:
    module = case.build()
    assert module.output_width == case.widths[-1]
    for count in (0, 1, 2, 33):
        assert module(rows_of(count)).shape == (count, case.tasks, case.widths[-1])


@all_networks
def test_large_inputs_give_finite_outputs_and_gradients(case: Case) -> None:
    module = case.build()
    # Gates saturate here, so an unshifted softmax would overflow. Linear layers stay far below float32's 3e38.
    assert module(rows_of(32) * 1e15).isfinite().all()
    rows_BD = (rows_of(32) * 1e5).requires_grad_()
    module(rows_BD).sum().backward()
    assert all(value.grad.isfinite().all() for value in [rows_BD, *module.parameters()] if value.grad is not None)


@all_networks
def test_scripted_and_reloaded_modules_answer_bit_for_bit(case: Case) -> None:
    module = case.build().eval()
    reloaded = reloaded_where_equal(module, [rows_of(count) for count in (1, 2, 33)])
    assert module.output_width == reloaded.output_width == case.widths[-1]


@all_networks
def test_scripted_module_has_the_gradients_of_the_eager_one(case: Case) -> None:
    module = case.build()
    scripted = torch.jit.script(copy.deepcopy(module))
    for _ in range(3):
        for network in (module, scripted):
            network.zero_grad()
            network(rows_of(9)).square().sum().backward()
        for (name, mine), theirs in zip(module.named_parameters(), scripted.parameters(), strict=True):
            # The executor may sum in another order: a few float32 roundings.
            torch.testing.assert_close(theirs.grad, mine.grad, rtol=1e-5, atol=1e-6, msg=name)


@all_networks
def test_rows_do_not_see_each_other(case: Case) -> None:
    module, rows_BD = case.build(), rows_of(33)
    together = module(rows_BD)
    alone = torch.cat([module(row_D.unsqueeze(0)) for row_D in rows_BD])
    # Another batch size is another kernel, which sums in another order.
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module(rows_BD[order]), together[order], atol=1e-6, rtol=0)
    spoilt = rows_BD.clone()
    spoilt[7] = torch.nan
    torch.testing.assert_close(module(spoilt)[8:], together[8:], atol=1e-6, rtol=0)


@all_networks
def test_gradients_reach_every_parameter(case: Case) -> None:
    # Wide, so that no expert has all its ReLUs closed for want of luck.
    module = case.widened(20).build()
    cotangent = torch.randn(256, case.tasks, 20, generator=torch.Generator().manual_seed(3))
    (module(rows_of(256)) * cotangent).sum().backward()
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            assert name.endswith("policy_TM"), f"{name} is never learned"
            continue
        assert parameter.grad is not None, f"{name} takes no part in the output"
        # The weight of a gate's only expert is 1 whatever its parameters are.
        if not (case.is_lone_gate and "gates" in name):
            # Of stacked experts every one: [E, ...] of the deeper layers.
            parts = parameter.grad if name.endswith(("_EDH", "_E1H")) else [parameter.grad]
            assert all(part.abs().sum() > 0 for part in parts), name


@all_networks
def test_initialisation_is_the_seeds(case: Case) -> None:
    first, again, other = (case.build(seed).state_dict() for seed in (1, 1, 2))
    assert list(first) == list(again) == list(other)
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
        assert not torch.equal(value, other[name]), f"{name} is not drawn"


@all_networks
def test_layers_start_uniform_within_one_over_root_of_their_inputs(case: Case) -> None:
    """nn.Linear's initialisation, for layers of stacked experts too: the bound is that of one expert's inputs."""
    for name, value in case.widened(40).build(input_width=50).named_parameters():
        if "stitches" in name or "native" in name or "policy" in name:
            continue
        is_bias = name.endswith(("bias", "bias_E1H"))
        is_input = 50 in value.shape or (is_bias and _reads_the_row(case.kind, name))
        bound = (50 if is_input else 40) ** -0.5
        assert value.abs().max() <= bound, name
        if value.numel() >= 100:
            # 100 draws of U(-b, b) all below 0.9 b: once in 10^4 trials. The seed is fixed.
            assert value.abs().max() > 0.9 * bound, name


def _reads_the_row(kind: str, name: str) -> bool:
    is_first_level = any(part in name for part in ("levels.0.", "layers.0.", "experts.0."))
    is_raw_gate = kind in ("mmoe", "ml_mmoe") and "gates" in name
    return is_raw_gate or (is_first_level and "deeper" not in name) or name == "experts.first.0.bias"


@all_networks
def test_weights_alone_restore_a_network(case: Case) -> None:
    module, other = case.build(seed=1), case.build(seed=2)
    assert set(module.state_dict()) == {name for name, _ in module.named_parameters()}, "a constant is stored"
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(rows_of(5)), module(rows_of(5)))


class _OneDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails where an operation takes or makes a tensor that is not on the module's device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves((out, args, kwargs)):
            assert not isinstance(value, Tensor) or value.device.type == "meta", f"{func} has a tensor on the host"
        return out


@all_networks
def test_forward_makes_nothing_on_the_host(case: Case) -> None:
    """So that on an accelerator no step waits for a copy, seen on torch's `meta` device."""
    module = case.build().to("meta")
    scripted = torch.jit.script(module)
    rows_BD = torch.empty(3, INPUT_WIDTH, device="meta")
    with _OneDevice():  # type: ignore[no-untyped-call]
        assert module(rows_BD).device.type == scripted(rows_BD).device.type == "meta"


@gated_networks
def test_expert_weights_are_shares_of_the_experts(case: Case) -> None:
    module = case.build()
    for network in (module, torch.jit.script(module)):
        weights = network.expert_weights(rows_of(5))  # type: ignore[operator]
        assert len(weights) == (1 if case.kind in ("mmoe", "aitm") else len(case.levels))
        for position, weights_BGE in enumerate(weights):
            is_last = position == len(weights) - 1
            if case.kind == "ple":
                num_experts = sum(case.per_task) + case.shared
                num_gates = case.tasks + int(not is_last and case.shared > 0)
            elif case.kind == "aitm":
                num_experts = num_gates = case.tasks
            else:
                num_experts = case.config["num_experts"]
                num_gates = case.tasks if is_last else num_experts
            assert weights_BGE.shape == (5, num_gates, num_experts)
            assert weights_BGE.min() >= 0
            torch.testing.assert_close(weights_BGE.sum(dim=2), torch.ones(5, num_gates), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.kind == "ple"])
def test_ple_weighs_exactly_the_experts_that_a_gate_sees(name: str) -> None:
    case = CASES[name]
    owner = [task for task, count in enumerate(case.per_task) for _ in range(count)] + [None] * case.shared
    module: Any = case.build()
    for weights_BGE in module.expert_weights(rows_of(6)):
        for unit, shares_BE in enumerate(weights_BGE.unbind(dim=1)):
            for expert, of_task in enumerate(owner):
                is_seen = unit == case.tasks or of_task in (unit, None)
                assert ((shares_BE[:, expert] > 0) == is_seen).all(), f"unit {unit}, expert {expert}"
