"""Every network as public code writes it, a module per expert and loops over tasks, with names of its own.

In: a case of the contract suite. Out: `Plain`, rows_BD -> logits_BO, and `names_of`, the lines that map the project's
names to its names. It knows the equations (SCIENCE is the papers'), and nothing of the project's modules.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from tests.model.fusion.cases import Case
from tests.model.fusion.equations import routes_of, transfers_of

TOWER = (6, 3)


class Net(nn.Module):
    """Linear and ReLU, layer by layer."""

    def __init__(self, width: int, widths: Sequence[int], *, with_logit: bool = False) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        for after in widths:
            modules += [nn.Linear(width, after), nn.ReLU()]
            width = after
        self.net = nn.Sequential(*modules, *([nn.Linear(width, 1)] if with_logit else []))

    def forward(self, x: Tensor) -> Tensor:
        """Output of the last layer."""
        y: Tensor = self.net(x)
        return y


class Stage(nn.Module):
    """Pools of experts, a pool for each unit. `sees[unit]` are the experts that the unit's router mixes."""

    def __init__(
        self, width: int, widths: Sequence[int], pools: list[int], sees: list[list[int]], router_width: int
    ) -> None:
        super().__init__()
        self.sees = sees
        self.pools = nn.ModuleList([nn.ModuleList([Net(width, widths) for _ in range(count)]) for count in pools])
        self.routers = nn.ModuleList([nn.Linear(router_width, len(seen)) for seen in sees])
        self.residuals = nn.ParameterList()

    def forward(self, inputs: list[Tensor], raw: Tensor | None = None) -> list[Tensor]:
        """Each unit's mix. Routers read their unit's input, or the raw row where it is given."""
        pools = [[net(x) for net in cast(nn.ModuleList, pool)] for pool, x in zip(self.pools, inputs, strict=True)]
        outputs = [output for pool in pools for output in pool]
        mixes = []
        for unit, (router, seen) in enumerate(zip(self.routers, self.sees, strict=True)):
            shares = torch.softmax(router(inputs[unit] if raw is None else raw), dim=1)
            mix = torch.stack([shares[:, [at]] * outputs[expert] for at, expert in enumerate(seen)]).sum(dim=0)
            if len(self.residuals):
                own = zip(self.residuals[unit], pools[unit], strict=True)
                mix = mix + torch.stack([share * output for share, output in own]).sum(dim=0)
            mixes.append(mix)
        return mixes


class Ait(nn.Module):
    """Attention over what one tower sends and another says."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.info = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, sender: Tensor, own: Tensor) -> Tensor:
        """The weighted values."""
        both = torch.stack([self.info(sender), own], dim=1)
        shares = torch.softmax((self.q(both) * self.k(both)).sum(dim=2) / own.shape[1] ** 0.5, dim=1)
        mixed: Tensor = (shares.unsqueeze(2) * self.v(both)).sum(dim=1)
        return mixed


def products(logits: Tensor, given: tuple[int | None, ...]) -> Tensor:
    """Logits of the products of probabilities along chains, by way of the probabilities."""
    chances = logits.double().sigmoid()
    columns = []
    for task in range(logits.shape[1]):
        product, one = chances[:, task], given[task] if given else None
        while one is not None:
            product, one = product * chances[:, one], given[one]
        columns.append(product)
    return torch.stack(columns, dim=1).logit().to(logits.dtype)


class Plain(nn.Module):
    """rows_BD -> logits_BO."""

    def __init__(self, case: Case, width: int) -> None:
        super().__init__()
        self.case = case
        self.stages = nn.ModuleList()
        self.mixers = nn.ParameterList()
        self.policies = nn.ParameterDict()
        self.heads = nn.ModuleList([Net(case.widths[-1], TOWER, with_logit=True) for _ in range(case.tasks)])
        raw, tasks = width, case.tasks
        levels = [case.widths] if case.kind == "mmoe" else case.levels
        self.aits = nn.ModuleDict({str(task): Ait(case.widths[-1]) for task, _ in transfers_of(case)})
        if case.kind in ("shared_bottom", "no_sharing", "aitm"):
            count = 1 if case.kind == "shared_bottom" else tasks
            self.stages.extend(Net(width, case.widths) for _ in range(count))
        elif case.kind.endswith("routing"):
            for layer, after in enumerate(case.widths):
                routed = case.config.get("routed")
                is_routed = routed is None or layer in routed
                count = case.config["num_modules"] if is_routed else 1
                self.stages.append(nn.ModuleList([nn.Linear(width, after) for _ in range(count)]))
                if case.kind == "learned_routing" and is_routed:
                    self.policies[str(layer)] = torch.rand(tasks, count)
                width = after
        else:
            for position, widths in enumerate(levels):
                is_last = position == len(levels) - 1
                self.stages.append(self._stage(width, widths, raw, is_last=is_last))
                if case.kind == "cross_stitch":
                    self.mixers.append(torch.randn(tasks, tasks))
                width = widths[-1]

    def _stage(self, width: int, widths: Sequence[int], raw: int, *, is_last: bool) -> Stage:
        case = self.case
        if case.kind == "cross_stitch":
            return Stage(width, widths, [1] * case.tasks, [], 1)
        if case.kind in ("mmoe", "ml_mmoe"):
            count = case.config["num_experts"]
            return Stage(width, widths, [1] * count, [list(range(count))] * (case.tasks if is_last else count), raw)
        counts = [*case.per_task, *([case.shared] if case.shared else [])]
        num_fused = case.tasks if is_last else len(counts)
        everyone = list(range(sum(counts)))
        sees = [everyone] * num_fused
        if case.kind == "ple":
            starts = [sum(counts[:unit]) for unit in range(case.tasks)]
            shared = everyone[sum(case.per_task) :]
            own = [[*range(start, start + counts[unit]), *shared] for unit, start in enumerate(starts)]
            sees = [*own, everyone][:num_fused]
        stage = Stage(width, widths, counts, sees, width)
        if case.kind != "ple":
            stage.residuals.extend(torch.randn(count) for count in counts[:num_fused])
        return stage

    def forward(self, rows: Tensor) -> Tensor:
        """logits_BO."""
        fused = self._fused(rows)
        logits = torch.cat([head(x) for head, x in zip(self.heads, fused, strict=True)], dim=1)
        return products(logits, self.case.given)

    def _fused(self, rows: Tensor) -> list[Tensor]:
        case = self.case
        if case.kind == "shared_bottom":
            return [self.stages[0](rows)] * case.tasks
        if case.kind == "no_sharing":
            return [net(rows) for net in self.stages]
        if case.kind == "aitm":
            towers = [net(rows) for net in self.stages]
            for task, given in transfers_of(case):
                towers[task] = self.aits[str(task)](towers[given], towers[task])
            return towers
        if case.kind.endswith("routing"):
            return [self._along(task, rows) for task in range(case.tasks)]
        units = len(self.stages[0].pools)  # type: ignore[arg-type]
        inputs = [rows] * units
        for position, stage in enumerate(self.stages):
            if case.kind == "cross_stitch":
                outputs = torch.stack([pool[0](x) for pool, x in zip(stage.pools, inputs, strict=True)])  # type: ignore[arg-type]
                inputs = list(torch.einsum("ut,tbh->ubh", self.mixers[position], outputs))
            else:
                inputs = stage(inputs, rows if case.kind.endswith("mmoe") else None)
        return inputs

    def _along(self, task: int, x: Tensor) -> Tensor:
        for layer, modules in enumerate(self.stages):
            if self.case.kind == "learned_routing":
                policy = self.policies[str(layer)][task] if str(layer) in self.policies else torch.ones(1)
                chosen = int(policy.argmax())
            else:
                chosen = routes_of(self.case)[layer][task]
            x = torch.relu(modules[chosen](x))  # type: ignore[index]
        return x


def names_of(case: Case) -> dict[str, str]:
    """The lines of a file of names for `Plain`."""
    heads = {"tower.{task}.{layer}.{part}": "heads.{task#}.net.{layer*2}.{part}"}
    if case.kind == "shared_bottom":
        return heads | {"layer.{layer}.{part}": "stages.0.net.{layer*2}.{part}"}
    own = {"expert.{task}.{layer}.{part}": "stages.{task#}.net.{layer*2}.{part}"}
    if case.kind == "no_sharing":
        return heads | own
    if case.kind == "aitm":
        attention = {f"transfer.{{task}}.{name}.{{part}}": f"aits.{{task#}}.{name[0]}.{{part}}"
                     for name in ("query", "key", "value")}  # fmt: skip
        return heads | own | attention | {"transfer.{task}.inform.{part}": "aits.{task#}.info.0.{part}"}
    if case.kind.endswith("routing"):
        modules = {"layer.{layer}.module.{module}.{part}": "stages.{layer}.{module}.{part}"}
        policies = {"layer.{layer}.policy.{task}": "policies.{layer}[{task#}]"}
        return heads | modules | (policies if case.kind == "learned_routing" else {})
    if case.kind in ("mmoe", "ml_mmoe"):
        own = {"level.{level}.expert.{expert}.{layer}.{part}": "stages.{level}.pools.{expert}.0.net.{layer*2}.{part}"}
        if case.kind == "ml_mmoe":
            own |= {"level.{level}.gate.{expert}.{part}": "stages.{level}.routers.{expert}.{part}"}
        return heads | own | {"level.{level}.gate.{task}.{part}": "stages.{level}.routers.{task#}.{part}"}
    units = [("{task}", "{task#}"), *([("shared", str(case.tasks))] if case.shared else [])]
    if case.kind == "cross_stitch":
        units, heads = units[:1], heads | {"level.{level}.stitch": "mixers.{level}"}
    for ours, theirs in units:
        expert = f"level.{{level}}.expert.{ours}.{{expert}}.{{layer}}.{{part}}"
        heads[expert] = f"stages.{{level}}.pools.{theirs}.{{expert}}.net.{{layer*2}}.{{part}}"
        if case.kind != "cross_stitch":
            heads[f"level.{{level}}.gate.{ours}.{{part}}"] = f"stages.{{level}}.routers.{theirs}.{{part}}"
        if case.kind.startswith("adatt"):
            heads[f"level.{{level}}.native.{ours}"] = f"stages.{{level}}.residuals.{theirs}"
    return heads
