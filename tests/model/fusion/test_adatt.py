"""AdaTT against Equations 4 to 11 of the paper, evaluated by plain loops over experts, units and rows in float64.

The reference has the paper and the published semantics (biases in gates, native weights added after the softmax, no
gate for the last level's shared unit). Of the module it uses only the place of each expert's numbers.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.fusion.adatt import AdaTT, AdaTTConfig
from tests.model.fusion.scripted import reloaded_where_equal

Array = NDArray[np.float64]
INPUT_WIDTH = 7


@dataclass(frozen=True)
class Case:
    """Sizes of one AdaTT. `units` are the experts of each task and, where there is one, of the shared unit."""

    kind: str
    levels: tuple[int | tuple[int, ...], ...]
    experts_per_task: int | tuple[int, ...]
    tasks: int
    shared_experts: int | None = None
    native_experts: bool = True

    def build(self, seed: int = 0) -> AdaTT:
        """The module, its native weights and biases drawn from the seed."""
        torch.manual_seed(seed)
        config = AdaTTConfig.from_mapping(
            {
                "kind": self.kind,
                "levels": list(self.levels),
                "experts_per_task": self.experts_per_task,
                "shared_experts": self.shared_experts,
                "native_experts": self.native_experts,
            },
            "test",
        )
        return config.build(INPUT_WIDTH, self.tasks)

    @property
    def per_task(self) -> tuple[int, ...]:
        """Experts of each task."""
        per_task = self.experts_per_task
        return (per_task,) * self.tasks if isinstance(per_task, int) else per_task

    @property
    def units(self) -> tuple[int, ...]:
        """Experts of each unit."""
        shared = self.shared_experts if self.shared_experts is not None else int(self.kind == "adatt")
        return (*self.per_task, *([shared] if shared else []))

    @property
    def widths(self) -> list[tuple[int, ...]]:
        """Layer widths of the experts of each level."""
        return [(level,) if isinstance(level, int) else level for level in self.levels]

    @property
    def is_native_learned(self) -> bool:
        """True where native weights are parameters: not where every unit has one expert (+1), nor in the ablation."""
        return self.native_experts and any(count != 1 for count in self.units)


CASES = {
    "sp": Case("adatt_sp", (5, 4), 2, 3),
    "sp-one-expert": Case("adatt_sp", (5, 4), 1, 3),
    "sp-unequal": Case("adatt_sp", (5, 4), (1, 3, 2), 3),
    "sp-one-task": Case("adatt_sp", (5, 4), 2, 1),
    "sp-one-task-one-expert": Case("adatt_sp", (5,), 1, 1),
    "sp-one-level": Case("adatt_sp", (6,), 2, 2),
    "sp-deep": Case("adatt_sp", ((6, 5, 3), (4, 4)), 2, 2),
    "general": Case("adatt", (5, 4), 2, 3),
    "general-one-expert-everywhere": Case("adatt", (5, 4), 1, 2),
    "general-one-expert-two-shared": Case("adatt", (5, 4), 1, 2, shared_experts=2),
    "general-unequal": Case("adatt", (5, 6, 4), (2, 1), 2, shared_experts=3),
    "general-no-shared": Case("adatt", (5, 4), 2, 2, shared_experts=0),
    "general-one-level": Case("adatt", (5,), 2, 2, shared_experts=1),
    "general-deep": Case("adatt", ((6, 5), (4, 3)), (1, 2), 2, shared_experts=2),
    "general-one-task": Case("adatt", (5, 4), 1, 1),
    "ablation-sp": Case("adatt_sp", (5, 4), 2, 3, native_experts=False),
    "ablation-sp-one-expert": Case("adatt_sp", (5, 4), 1, 3, native_experts=False),
    "ablation-general": Case("adatt", (5, (4, 3)), 2, 2, shared_experts=2, native_experts=False),
}
all_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@dataclass
class Level:
    """One level's numbers, one by one: experts[e] and gates[g] as (weight [out, in], bias), native[g]."""

    experts: list[list[tuple[Array, Array]]]
    gates: list[tuple[Array, Array]]
    native: list[Array]


def unpack(case: Case, state: dict[str, Array]) -> list[Level]:
    """The module's state dict -> each expert's and gate's own matrices."""
    levels = []
    num_experts = sum(case.units)
    for position, widths in enumerate(case.widths):
        is_first, is_last = position == 0, position == len(case.levels) - 1
        fused = case.tasks if is_last else len(case.units)
        prefix = f"levels.{position}."
        experts: list[list[tuple[Array, Array]]] = []
        for unit, count in enumerate(case.units):
            linear = f"{prefix}experts.first.{0 if is_first else unit}."
            for local in range(count):
                start = (len(experts) if is_first else local) * widths[0]
                rows = slice(start, start + widths[0])
                experts.append([(state[linear + "weight"][rows], state[linear + "bias"][rows])])
        for layer in range(len(widths) - 1):
            for expert in range(num_experts):
                weight = state[f"{prefix}experts.deeper.{layer}.weight_EDH"][expert].T
                experts[expert].append((weight, state[f"{prefix}experts.deeper.{layer}.bias_E1H"][expert, 0]))
        gates = []
        for unit in range(fused):
            gate = f"{prefix}gates.{0 if is_first else unit}."
            rows = slice(unit * num_experts, (unit + 1) * num_experts) if is_first else slice(None)
            gates.append((state[gate + "weight"][rows], state[gate + "bias"][rows]))
        native = [np.ones(case.units[unit]) for unit in range(fused)]
        if case.is_native_learned:
            flat, start = state[prefix + "native_weights"], 0
            for unit in range(fused):
                native[unit] = flat[start : start + case.units[unit]]
                start += case.units[unit]
            assert start == len(flat)
        levels.append(Level(experts, gates, native))
    return levels


def reference(case: Case, state: dict[str, Array], rows_BD: Array) -> Array:
    """fused_BTH by loops (Equations 4 to 11)."""
    levels = unpack(case, state)
    answers = []
    for row in rows_BD:
        inputs = [row] * len(case.units)  # Equation 2
        for level in levels:
            outputs: list[Array] = []
            for unit, count in enumerate(case.units):
                for _ in range(count):
                    hidden = inputs[unit]  # Equation 4: a native expert reads its own unit's input
                    for weight, bias in level.experts[len(outputs)]:
                        hidden = np.maximum(weight @ hidden + bias, 0.0)
                    outputs.append(hidden)
            fused = []
            for unit, (weight, bias) in enumerate(level.gates):
                logits = weight @ inputs[unit] + bias  # Equation 10, with the published bias
                gate = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
                total = sum(share * output for share, output in zip(gate, outputs, strict=True))  # Equation 9
                if case.native_experts:
                    start = sum(case.units[:unit])
                    for own, value in enumerate(level.native[unit]):  # Equation 8
                        total = total + value * outputs[start + own]
                fused.append(total)
            inputs = fused
        answers.append(np.stack(inputs))
    return np.stack(answers)


def state_of(module: AdaTT) -> dict[str, Array]:
    """Parameters by name in float64."""
    return {name: value.detach().double().numpy() for name, value in module.named_parameters()}


def rows_of(count: int, seed: int = 1) -> Tensor:
    """Inputs of both signs, some of them 0."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, INPUT_WIDTH, generator=generator)
    return torch.where(rows.abs() < 0.1, 0.0, rows)


@all_cases
def test_output_is_that_of_the_equations(case: Case) -> None:
    module, rows = case.build(), rows_of(9)
    expected = reference(case, state_of(module), rows.double().numpy())
    # A few hundred float32 products of order 1: rounding stays below 5e-6.
    np.testing.assert_allclose(module(rows).detach().numpy(), expected, atol=5e-6, rtol=0)
    assert module.output_width == expected.shape[2]


@all_cases
def test_gradients_are_those_of_the_equations(case: Case) -> None:
    """Along a random direction of every parameter, against central differences of the loop in float64."""
    module, rows = case.build(), rows_of(4)
    generator = np.random.default_rng(2)
    cotangent = generator.normal(size=(4, case.tasks, module.output_width))
    (module(rows) * torch.from_numpy(cotangent)).sum().backward()
    state, step = state_of(module), 1e-6
    for name, parameter in module.named_parameters():
        direction = generator.normal(size=parameter.shape)
        sides = [
            (reference(case, {**state, name: state[name] + sign * step * direction}, rows.double().numpy()) * cotangent)
            for sign in (1, -1)
        ]
        expected = (sides[0] - sides[1]).sum() / (2 * step)
        assert parameter.grad is not None, f"{name} takes no part in the output"
        gradient = parameter.grad.double().numpy()
        # Relative to what the sum is made of: the sum itself may cancel.
        size = np.abs(gradient * direction).sum() + 1e-6
        assert abs((gradient * direction).sum() - expected) <= 1e-4 * size, name


@all_cases
def test_parameters_are_those_of_the_paper_and_no_more(case: Case) -> None:
    """So the last level's shared unit has no gate and no native weights, and a fixed +1 is no parameter."""
    expected, width = 0, INPUT_WIDTH
    for position, widths in enumerate(case.widths):
        fused = case.tasks if position == len(case.levels) - 1 else len(case.units)
        experts = sum(case.units)
        expected += fused * (width + 1) * experts
        expected += sum(case.units[:fused]) if case.is_native_learned else 0
        for after in widths:
            expected += experts * (width + 1) * after
            width = after
    assert sum(parameter.numel() for parameter in case.build().parameters()) == expected


@all_cases
def test_native_weights_are_learned_or_exactly_one(case: Case) -> None:
    for name, level in case.build().levels.named_children():
        names = dict(level.named_parameters())
        assert ("native_weights" in names) == case.is_native_learned, name
        if case.native_experts and not case.is_native_learned:
            padded = level.padded_native_weights()  # type: ignore[operator]
            assert torch.equal(padded, torch.eye(*padded.shape)), "one expert each: unit u's native expert is expert u"


@pytest.mark.parametrize(("case", "bounds"), [
    (Case("adatt_sp", (4, 4), 100, 2), (0.1, 0.1)),
    (Case("adatt_sp", (4, 4), (1, 100), 2), (1.0, 0.1)),
    (Case("adatt", (4, 4), 1, 2, shared_experts=16), (1.0, 1.0, 0.25)),
])  # fmt: skip
def test_native_weights_start_uniform_within_one_over_root_m(case: Case, bounds: tuple[float, ...]) -> None:
    draws: list[list[Array]] = [[] for _ in case.units]
    for seed in range(30):
        for level in unpack(case, state_of(case.build(seed))):
            for unit, native in enumerate(level.native):
                draws[unit].append(native)
    for values, bound in zip(draws, bounds, strict=True):
        drawn = np.concatenate(values)
        assert np.abs(drawn).max() <= bound
        # 30 draws or more of U(-b, b) leave the outer fifths empty once in 10^5 trials. The seeds are fixed.
        assert drawn.min() < -0.6 * bound
        assert drawn.max() > 0.6 * bound


def test_ablation_removes_the_native_weights_alone() -> None:
    whole, ablated = Case("adatt", (5, 4), 2, 2), Case("adatt", (5, 4), 2, 2, native_experts=False)
    parameters, others = (dict(case.build(seed=3).named_parameters()) for case in (whole, ablated))
    native = {name for name in parameters if name.endswith("native_weights")}
    assert set(others) == set(parameters) - native
    assert len(native) == 2
    for name, value in others.items():
        assert torch.equal(value, parameters[name]), f"{name} differs though the seed is the same"


@pytest.mark.parametrize("case", [CASES["sp-unequal"], CASES["general-unequal"], CASES["general-deep"]])
def test_reordering_tasks_reorders_the_outputs(case: Case) -> None:
    order = list(reversed(range(case.tasks)))
    permuted = Case(
        case.kind, case.levels, tuple(case.per_task[task] for task in order), case.tasks, case.shared_experts
    )
    units = [*order, *range(case.tasks, len(case.units))]
    starts = [sum(case.units[:unit]) for unit in range(len(case.units))]
    experts = [starts[unit] + own for unit in units for own in range(case.units[unit])]
    module, other = case.build(), permuted.build(seed=9)
    mine, theirs = unpack(case, state_of(module)), unpack(permuted, state := state_of(other))
    for level, target in zip(mine, theirs, strict=True):
        for layers, source in zip(target.experts, experts, strict=True):
            for (weight, bias), (new_weight, new_bias) in zip(layers, level.experts[source], strict=True):
                weight[:], bias[:] = new_weight, new_bias
        for unit, (weight, bias) in zip(units, target.gates, strict=False):
            weight[:], bias[:] = level.gates[unit][0][experts], level.gates[unit][1][experts]
        for unit, native in zip(units, target.native, strict=False):
            native[:] = level.native[unit]
    # `unpack` gives views, so `state` now holds the reordered numbers.
    other.load_state_dict({name: torch.from_numpy(value).float() for name, value in state.items()})
    rows = rows_of(6)
    torch.testing.assert_close(other(rows), module(rows)[:, order], atol=5e-6, rtol=0)


@all_cases
def test_scripted_and_reloaded_modules_answer_bit_for_bit(case: Case) -> None:
    module = case.build().eval()
    blocks = [rows_of(count) for count in (1, 2, 33)]
    reloaded = reloaded_where_equal(module, blocks)
    for rows in blocks:
        for mine, theirs in zip(module.expert_weights(rows), reloaded.expert_weights(rows), strict=True):
            assert torch.equal(mine, theirs)


@all_cases
def test_expert_weights_are_a_gate_plus_native_weights(case: Case) -> None:
    module, rows = case.build(), rows_of(5)
    weights = module.expert_weights(rows)
    assert len(weights) == len(case.levels)
    for position, (level, weights_BGE) in enumerate(zip(unpack(case, state_of(module)), weights, strict=True)):
        fused = case.tasks if position == len(case.levels) - 1 else len(case.units)
        assert weights_BGE.shape == (5, fused, sum(case.units))
        gates = weights_BGE.detach().double().numpy().copy()
        if case.native_experts:
            for unit, native in enumerate(level.native):
                start = sum(case.units[:unit])
                gates[:, unit, start : start + len(native)] -= native
        np.testing.assert_allclose(gates.sum(axis=2), 1.0, atol=1e-6)
        # Subtracting in float32 leaves rounding of 1e-7 around a share of 0.
        assert gates.min() > -1e-6


def test_gates_of_the_first_level_read_the_row_and_later_ones_their_own_unit() -> None:
    """Scaling task 0's first-level native weights moves task 0's second-level gate and no other gate."""
    case = CASES["sp"]
    module, rows = case.build(), rows_of(5)
    before = [weights.clone() for weights in module.expert_weights(rows)]
    with torch.no_grad():
        dict(module.named_parameters())["levels.0.native_weights"][:2] += 1.0
    after = module.expert_weights(rows)
    assert not torch.allclose(before[1][:, 0], after[1][:, 0])
    assert torch.equal(before[1][:, 1:], after[1][:, 1:])


def test_the_callers_lists_stay_as_they_are() -> None:
    levels, experts = [[5, 4], [3]], [2, 1]
    AdaTT(INPUT_WIDTH, levels, experts, shared_experts=2)
    assert levels == [[5, 4], [3]]
    assert experts == [2, 1]


@pytest.mark.parametrize(("change", "message"), [
    ({"shared_experts": 1}, "adatt_sp has no shared experts"),
    ({"levels": []}, "levels"),
    ({"levels": [[]]}, "list of expert widths is empty"),
    ({"levels": [0]}, "levels"),
    ({"levels": [[4, -1]]}, "levels"),
    ({"experts_per_task": 0}, "experts_per_task"),
    ({"experts_per_task": [2, 0]}, "experts_per_task"),
    ({"experts_per_task": "many"}, "experts_per_task"),
    ({"experts_per_task": True}, "experts_per_task"),
    ({"shared_experts": -1}, "shared_experts"),
    ({"kind": "adat"}, "kind"),
    ({"native_expert": False}, "did you mean 'native_experts'"),
])  # fmt: skip
def test_config_faults_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaTTConfig.from_mapping({"kind": "adatt_sp", "levels": [4], **change}, "network.yaml")


def test_expert_counts_must_fit_the_tasks() -> None:
    config = AdaTTConfig(kind="adatt_sp", levels=(4,), experts_per_task=(2, 1))
    with pytest.raises(ValueError, match="2 entries for 3 tasks"):
        config.build(INPUT_WIDTH, 3)
    assert config.build(INPUT_WIDTH, 2)(rows_of(1)).shape == (1, 2, 4)
