"""Isolation of tasks: gradients and outputs are exactly zero where it is promised."""

import pytest
import torch
from torch import Tensor, nn

from tests.model.fusion.cases import CASES, INPUT_WIDTH, Case, rows_of
from tests.model.fusion.equations import Level, routes_of, weights_of

ROWS = 256
WIDTH = 20  # so that no expert has all its ReLUs closed for want of luck


def gradients_of(case: Case, module: nn.Module, task: int) -> dict[str, Tensor]:
    """By name, d(a random sum of one task's representation) / d(parameter)."""
    module.zero_grad()
    cotangent_BH = torch.randn(ROWS, case.widths[-1], generator=torch.Generator().manual_seed(3))
    (module(rows_of(ROWS))[:, task] * cotangent_BH).sum().backward()
    return {name: torch.zeros_like(value) if value.grad is None else value.grad.clone()
            for name, value in module.named_parameters()}  # fmt: skip


def expert_gradients(case: Case, task: int) -> list[Level]:
    """One task's gradient at each expert's and gate's own matrices."""
    return weights_of(case, gradients_of(case, case.build(), task))


def is_touched(level: Level, expert: int) -> bool:
    """True where all matrices of an expert have a gradient. A mix of some and none is a fault of its own."""
    touched = {bool((part != 0).any()) for layer in level.experts[expert] for part in layer}
    assert len(touched) == 1, f"expert {expert} is reached in part"
    return touched.pop()


ISOLATED = [pytest.param(case, id=name) for name, case in CASES.items() if case.tasks > 1 and
            (case.kind == "no_sharing" or (case.kind == "ple" and not case.shared))]  # fmt: skip


@pytest.mark.parametrize("case", ISOLATED)
def test_no_gradient_of_a_task_reaches_another_where_nothing_is_shared(case: Case) -> None:
    case = case.widened(WIDTH)
    counts = case.per_task if case.kind == "ple" else [1] * case.tasks
    owner = [task for task, count in enumerate(counts) for _ in range(count)]
    for task in range(case.tasks):
        for level in expert_gradients(case, task):
            assert [is_touched(level, expert) for expert in range(len(owner))] == [own == task for own in owner]
            for unit, gate in enumerate(level.gates):
                if unit != task:
                    assert not any(part.any() for part in gate), f"task {task} moves the gate of task {unit}"


@pytest.mark.parametrize("case", ISOLATED)
def test_no_task_changes_with_another_where_nothing_is_shared(case: Case) -> None:
    module = case.build()
    before = module(rows_of(9))
    with torch.no_grad():
        for level in weights_of(case, module.state_dict()):
            # The last task owns the last expert, and the last gate where there are gates.
            for weight, bias in [*level.experts[-1], *level.gates[-1:]]:
                weight.add_(1.0)
                bias.add_(1.0)
    after = module(rows_of(9))
    assert torch.equal(after[:, :-1], before[:, :-1])
    assert not torch.equal(after[:, -1], before[:, -1])


@pytest.mark.parametrize("name", ["routing", "routing-deep", "routing-chosen", "routing-first-then-shared"])
def test_a_tasks_gradient_is_zero_in_modules_off_its_route(name: str) -> None:
    case = CASES[name].widened(WIDTH)
    routes = routes_of(case)
    assert any(len(set(modules)) > 1 for modules in routes), "this seed sends all tasks the same way"
    for task in range(case.tasks):
        for level, modules in zip(expert_gradients(case, task), routes, strict=True):
            drawn = sorted(set(modules))
            assert [is_touched(level, at) for at in range(len(drawn))] == [number == modules[task] for number in drawn]


def test_ple_keeps_a_tasks_last_experts_from_the_others_and_adatt_does_not() -> None:
    """The adaptive part of AdaTT: a task's gate reaches the native experts of the others, at the last level too."""
    sizes = {"levels": [WIDTH, WIDTH], "experts_per_task": 2}
    last = [f"levels.1.experts.first.{unit}.weight" for unit in range(4)]
    for kind, shared, reached in (
        ("ple", 1, [True, False, False, True]),
        ("adatt", 1, [True, True, True, True]),
        ("adatt_sp", 0, [True, True, True]),
    ):
        case = Case({"kind": kind, **sizes, **({"shared_experts": shared} if shared else {})}, 3)
        gradients = gradients_of(case, case.build(), task=0)
        names = [name for name in last if name in gradients]
        assert [bool(gradients[name].any()) for name in names] == reached, kind


def test_adatt_moves_no_gate_and_no_native_weight_of_another_task_at_the_last_level() -> None:
    case = Case({"kind": "adatt_sp", "levels": [WIDTH, WIDTH], "experts_per_task": 2}, 3)
    gradients = gradients_of(case, case.build(), task=0)
    assert [bool(gradients[f"levels.1.gates.{unit}.weight"].any()) for unit in range(3)] == [True, False, False]
    assert [bool(value) for value in gradients["levels.1.native_weights"]] == [True] * 2 + [False] * 4


@pytest.mark.parametrize("kind", ["mmoe", "ml_mmoe"])
def test_every_expert_of_mmoe_learns_from_every_task_and_each_gate_from_its_own(kind: str) -> None:
    case = Case({"kind": kind, "levels": [WIDTH, WIDTH], "num_experts": 3}, 2)
    for task in range(2):
        levels = expert_gradients(case, task)
        for level in levels:
            assert all(is_touched(level, expert) for expert in range(3))
        assert [bool(weight.any()) for weight, _ in levels[-1].gates] == [task == 0, task == 1]


@pytest.mark.parametrize("name", ["ml-mmoe", "ml-mmoe-deep"])
def test_ml_mmoe_gates_read_the_raw_row_at_every_level(name: str) -> None:
    """So changing what the first level's experts yield changes no gate above. PLE's gates do read their unit."""
    case = CASES[name]
    module = case.build()
    before, output = module.expert_weights(rows_of(9)), module(rows_of(9))  # type: ignore[operator]
    with torch.no_grad():
        for weight, bias in (layer for mlp in weights_of(case, module.state_dict())[0].experts for layer in mlp):
            weight.mul_(2.0)
            bias.add_(1.0)
    after = module.expert_weights(rows_of(9))  # type: ignore[operator]
    assert not torch.allclose(module(rows_of(9)), output)
    assert len(before) == len(case.levels) > 1
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(before, after, strict=True))
    assert all(gate.shape[1] == INPUT_WIDTH
               for level in weights_of(case, module.state_dict()) for gate, _ in level.gates)  # fmt: skip


def test_ple_gates_read_the_input_of_their_own_unit() -> None:
    """Task 0's own first-level expert moves its gate above and the shared one's output, and no other task's gate."""
    case = CASES["ple"]
    module = case.build()
    before = module.expert_weights(rows_of(9))  # type: ignore[operator]
    with torch.no_grad():
        for weight, bias in weights_of(case, module.state_dict())[0].experts[0]:
            weight.mul_(2.0)
            bias.add_(1.0)
    after = module.expert_weights(rows_of(9))  # type: ignore[operator]
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1][:, 0], after[1][:, 0])
    assert torch.equal(before[1][:, 1:], after[1][:, 1:])
