"""The equations of the fusion networks, one row, one task, one expert at a time, and where each number lies.

In: a case, a module's parameters by name, rows. Out: fused[row][task], vectors of H. The same loops run on numpy arrays
(values in float64) and on torch tensors (whose autograd then gives the gradients of the loops). `weights_of` is all
that is known of the modules: it gives views, so that a test can also write through it. AdaTT's are in test_adatt.py.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from model.fusion import FixedRandomRoutingConfig
from tests.model.fusion.cases import Case

Array = Any  # numpy.ndarray or torch.Tensor: the loops use what both have
State = Mapping[str, Array]
Linear = tuple[Array, Array]  # weight [out, in], bias [out]
Mlp = list[Linear]


@dataclass
class Level:
    """One level: an MLP per expert (task 0's, task 1's, ..., shared), the gates, cross-stitch's T x T mix, routes."""

    experts: list[Mlp]
    gates: list[Linear] = field(default_factory=list)
    stitch: Array = None
    routes: list[int] = field(default_factory=list)  # of learned routing, each task's expert
    transfers: list[tuple[Linear, Array]] = field(default_factory=list)  # of AITM: the informing layer, and [3 H, H]


def weights_of(case: Case, state: State) -> list[Level]:
    """Views of each expert's and each gate's own matrices. Of fixed routing, `experts` are the modules drawn."""
    if case.kind == "shared_bottom":
        return [Level([[linear_of(state, f"layers.{layer}") for layer in range(len(case.widths))]])]
    if case.kind == "no_sharing":
        return [Level(_experts_of(state, "experts", case.widths, [1] * case.tasks, has_one_input=True))]
    if case.kind == "aitm":
        experts = _experts_of(state, "experts", case.widths, [1] * case.tasks, has_one_input=True)
        names = [f"transfers.{step}" for step in range(len(transfers_of(case)))]
        transfers = [(linear_of(state, f"{name}.inform"), state[f"{name}.attend.weight"]) for name in names]
        return [Level(experts, transfers=transfers)]
    if case.kind == "fixed_random_routing":
        return [
            Level([[linear_of(state, f"layers.{layer}.linears.{k}")] for k in range(len(set(modules)))])
            for layer, modules in enumerate(routes_of(case))
        ]
    if case.kind == "learned_routing":
        return [_routed_level(case, state, f"layers.{layer}") for layer in range(len(case.widths))]
    if case.kind == "mmoe":
        case = Case({**case.config, "kind": "ml_mmoe", "levels": [case.widths]}, case.tasks)
    return [_level_of(case, state, position) for position in range(len(case.levels))]


def routes_of(case: Case) -> list[list[int]]:
    """routes[layer][task] as the configuration draws them."""
    config = case.parsed
    assert isinstance(config, FixedRandomRoutingConfig)
    return config.routes(case.tasks)


def transfers_of(case: Case) -> list[tuple[int, int]]:
    """(task, task that it is given), near ones before far ones from the beginnings of chains, then by number."""

    def distance(task: int) -> int:
        other = case.given[task]
        return 0 if other is None else 1 + distance(other)

    pairs = [(task, other) for task, other in enumerate(case.given) if other is not None]
    return sorted(pairs, key=lambda pair: (distance(pair[0]), pair[0]))


def _routed_level(case: Case, state: State, name: str) -> Level:
    if f"{name}.linear.weight" in state:
        return Level([[linear_of(state, f"{name}.linear")]], routes=[0] * case.tasks)
    weights, biases = state[f"{name}.choices.weight_EDH"], state[f"{name}.choices.bias_E1H"]
    experts = [[(weight.T, bias[0])] for weight, bias in zip(weights, biases, strict=True)]
    return Level(experts, routes=[int(row.argmax()) for row in state[f"{name}.policy_TM"]])


def linear_of(state: State, name: str) -> Linear:
    """Weight and bias of an nn.Linear."""
    return state[f"{name}.weight"], state[f"{name}.bias"]


def _level_of(case: Case, state: State, position: int) -> Level:
    is_first, is_last = position == 0, position == len(case.levels) - 1
    prefix, widths = f"levels.{position}", case.levels[position]
    if case.kind == "cross_stitch":
        experts = _experts_of(state, f"experts.{position}", widths, [1] * case.tasks, has_one_input=is_first)
        return Level(experts, stitch=state[f"stitches.{position}.weight"])
    if case.kind == "ml_mmoe":
        count = case.config["num_experts"]
        weight, bias = linear_of(state, f"{prefix}.gates")
        parts = [slice(g * count, (g + 1) * count) for g in range(case.tasks if is_last else count)]
        experts = _experts_of(state, f"{prefix}.experts", widths, [1] * count, has_one_input=is_first)
        return Level(experts, [(weight[part], bias[part]) for part in parts])
    assert case.kind == "ple"
    units = [*case.per_task, *([case.shared] if case.shared else [])]
    num_gates = case.tasks if is_last else len(units)
    experts = _experts_of(state, f"{prefix}.experts", widths, units, has_one_input=is_first)
    return Level(experts, [linear_of(state, f"{prefix}.gates.{unit}") for unit in range(num_gates)])


def _experts_of(state: State, name: str, widths: list[int], units: list[int], *, has_one_input: bool) -> list[Mlp]:
    groups = [sum(units)] if has_one_input else units
    experts: list[Mlp] = []
    for number, count in enumerate(groups):
        weight, bias = linear_of(state, f"{name}.first.{number}")
        parts = [slice(k * widths[0], (k + 1) * widths[0]) for k in range(count)]
        experts += [[(weight[part], bias[part])] for part in parts]
    for layer in range(len(widths) - 1):
        for number, expert in enumerate(experts):
            deeper = f"{name}.deeper.{layer}"
            expert.append((state[f"{deeper}.weight_EDH"][number].T, state[f"{deeper}.bias_E1H"][number][0]))
    return experts


def reference(case: Case, state: State, rows: Iterable[Array], exp: Callable[[Array], Array]) -> list[list[Array]]:
    """fused[row][task] by the paper's equations. `exp` is that of the arrays' library."""
    levels = weights_of(case, state)
    return [_fused(case, levels, row, exp) for row in rows]


def _fused(case: Case, levels: list[Level], row: Array, exp: Callable[[Array], Array]) -> list[Array]:
    match case.kind:
        case "shared_bottom":
            return [mlp(levels[0].experts[0], row)] * case.tasks
        case "no_sharing":
            return [mlp(expert, row) for expert in levels[0].experts]
        case "aitm":
            return _transferred(case, levels[0], row, exp)
        case "fixed_random_routing":
            return _routed(case, levels, row)
        case "learned_routing":
            return [_along(levels, task, row) for task in range(case.tasks)]
        case "cross_stitch":
            return _cross_stitch(levels, [row] * case.tasks)
        case "mmoe" | "ml_mmoe":
            return _mixtures(levels, row, exp)
        case _:
            return _extraction(case, levels, row, exp)


def mlp(layers: Mlp, hidden: Array) -> Array:
    """ReLU after every layer, the last included."""
    for weight, bias in layers:
        hidden = (weight @ hidden + bias).clip(min=0.0)
    return hidden


def softmax(logits: Array, exp: Callable[[Array], Array]) -> Array:
    """exp(x_i) / sum_j exp(x_j)."""
    powers = exp(logits - logits.max())
    return powers / powers.sum()


def _mix(shares: Array, outputs: list[Array]) -> Array:
    return sum(share * output for share, output in zip(shares, outputs, strict=True))


def _routed(case: Case, levels: list[Level], row: Array) -> list[Array]:
    routes, fused = routes_of(case), []
    for task in range(case.tasks):
        hidden = row
        for level, modules in zip(levels, routes, strict=True):
            # Modules that no task drew are not built. The others are in the order of their numbers.
            hidden = mlp(level.experts[sorted(set(modules)).index(modules[task])], hidden)
        fused.append(hidden)
    return fused


def _transferred(case: Case, level: Level, row: Array, exp: Callable[[Array], Array]) -> list[Array]:
    """Equations 4 to 6 of the AITM paper."""
    fused = [mlp(expert, row) for expert in level.experts]
    for (task, given), (inform, attend) in zip(transfers_of(case), level.transfers, strict=True):
        width = attend.shape[1]
        query, key, value = attend[:width], attend[width : 2 * width], attend[2 * width :]
        both = [mlp([inform], fused[given]), fused[task]]
        powers = [exp(((query @ one) * (key @ one)).sum() / width**0.5) for one in both]
        fused[task] = sum(power / sum(powers) * (value @ one) for power, one in zip(powers, both, strict=True))
    return fused


def _along(levels: list[Level], task: int, hidden: Array) -> Array:
    for level in levels:
        hidden = mlp(level.experts[level.routes[task]], hidden)
    return hidden


def _cross_stitch(levels: list[Level], inputs: list[Array]) -> list[Array]:
    for level in levels:
        outputs = [mlp(expert, hidden) for expert, hidden in zip(level.experts, inputs, strict=True)]
        inputs = [_mix(level.stitch[task], outputs) for task in range(len(outputs))]
    return inputs


def _mixtures(levels: list[Level], row: Array, exp: Callable[[Array], Array]) -> list[Array]:
    inputs = [row] * len(levels[0].experts)
    for level in levels:
        outputs = [mlp(expert, hidden) for expert, hidden in zip(level.experts, inputs, strict=True)]
        inputs = [_mix(softmax(weight @ row + bias, exp), outputs) for weight, bias in level.gates]
    return inputs


def _extraction(case: Case, levels: list[Level], row: Array, exp: Callable[[Array], Array]) -> list[Array]:
    units = [*case.per_task, *([case.shared] if case.shared else [])]
    unit_of = [unit for unit, count in enumerate(units) for _ in range(count)]
    starts = [0, *itertools.accumulate(case.per_task)]
    inputs = [row] * len(units)
    for level in levels:
        outputs = [mlp(expert, inputs[unit]) for expert, unit in zip(level.experts, unit_of, strict=True)]
        shared = outputs[starts[-1] :]
        fused = []
        for unit, (weight, bias) in enumerate(level.gates):
            is_task = unit < case.tasks
            seen = [*outputs[starts[unit] : starts[unit + 1]], *shared] if is_task else outputs
            fused.append(_mix(softmax(weight @ inputs[unit] + bias, exp), seen))
        inputs = fused
    return inputs
