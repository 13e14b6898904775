"""The network as it scores: N candidates of one request, every fusion network computed by the same few large products.

In: `rows_ND`, the candidates' columns, and `sums_1F`, what the request's columns add to every Linear that reads the raw
row (`request_linears`, once a request). Out: logits_NO. Made from a trained network's `frozen()`, with copies of its
weights. Scripted by TorchScript in fp32, where experts are mixed by a batched product. With `is_compiled` written for a
compiler that fuses elementwise steps, weights and activations in `dtype`, those of products over the
raw row in `row_dtype`, gates, sums and logits in fp32.

Shapes: B 1 or N rows, N candidates, R requests, D columns of a raw row, K gate logits, E experts and G outputs of a
level, H widths, F all outputs over the raw row (experts of every raw row, then the gates that read it), O outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.export.crossed_row import CrossedRow, over_raw_row
from model.export.frozen_linear import frozen_linear
from model.export.scoring_transfer import ScoringTransfers
from model.fusion.experts import side_by_side
from model.fusion.frozen import Expert, FrozenLevel, FrozenNetwork, Gates
from model.fusion.slots import Layers

# TorchScript reads these modules: lists are filled by loops.
# ruff: noqa: PERF401


def request_linears(frozen: FrozenNetwork, request_columns: Tensor) -> nn.ModuleList:
    """Sums that a request's columns of each raw row add to each output over it, biases included: rows_BD -> sums_BF."""
    weights, biases = _first_products(frozen)
    return nn.ModuleList(
        [
            _by_input(frozen_linear(weight[:, request_columns], bias))
            for weight, bias in zip(weights, biases, strict=True)
        ]
    )


class ScoringNetwork(nn.Module):
    """rows_ND, sums_1F -> logits_NO. `towers` are each task's layers, `chains` what makes their logits those of
    unconditional probabilities (model/tasks/chains.py).

    The same in two steps, the first of which no request changes: `candidate_sums`, then `from_sums`."""

    unit_of_task: list[int]
    widths: list[int]

    def __init__(
        self,
        frozen: FrozenNetwork,
        towers: Sequence[Layers],
        chains: nn.Module,
        candidate_columns: Tensor,
        *,
        is_compiled: bool = False,
        dtype: torch.dtype = torch.float32,
        row_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.is_compiled: bool = is_compiled
        self.dtype: torch.dtype = dtype
        self.row_dtype: torch.dtype = dtype if row_dtype is None else row_dtype
        self.width: int = len(candidate_columns)
        num_gates = sum(len(gates.bias_GE.flatten()) for gates in _row_gates(frozen))
        weights, biases = _over_raw_row(frozen)
        # The gates are a Linear of their own: their few outputs are wanted in another precision and layout.
        splits = [len(weights[0]) - num_gates, *([num_gates] if num_gates else [])]
        self.crosses = nn.ModuleList()
        if frozen.crosses:
            self.crosses.append(
                CrossedRow(frozen.crosses, weights[0], biases[0], splits, is_compiled=is_compiled, dtype=dtype)
            )
            weights, _ = _first_products(frozen)
            splits = [len(weights[0])]
        parts = [weight[:, candidate_columns] for weight in weights]
        first, *gates = torch.split(parts[0], splits)
        self.experts = nn.ModuleList([frozen_linear(part, None, self.row_dtype) for part in (first, *parts[1:])])
        self.row_gates = nn.ModuleList([frozen_linear(part, None, self.row_dtype) for part in gates])
        self.widths = [len(part) for part in (first, *parts[1:], *gates)]
        levels: list[nn.Module] = []
        start = 0
        for level in frozen.levels:
            levels.append(ScoringLevel(level, start, is_first=not levels, is_compiled=is_compiled, dtype=dtype))
            if isinstance(level.mix, Gates) and level.mix.reads_row:
                start += level.mix.bias_GE.numel()
        self.levels = nn.ModuleList(levels)
        self.unit_of_task = frozen.unit_of_task
        self.towers = nn.ModuleList([ScoringTower(layers, dtype) for layers in towers])
        self.chains = chains

    def forward(self, rows_ND: Tensor, sums_1F: Tensor) -> Tensor:
        """logits_NO in task order."""
        return self._mixed_logits(self._parts(rows_ND, sums_1F))[0]

    def with_expert_weights(self, rows_ND: Tensor, sums_1F: Tensor) -> tuple[Tensor, list[Tensor]]:
        """logits_NO, and for every level that mixes experts their weights [N, G, E] in its units. They are gates and
        native weights together, or fixed."""
        logits_NO, levels = self._mixed_logits(self._parts(rows_ND, sums_1F))
        weights: list[Tensor] = []
        for weights_BGE in levels:
            if weights_BGE.numel() > 0:
                weights.append(weights_BGE.expand(logits_NO.shape[0], -1, -1))
        return logits_NO, weights

    def candidate_sums(self, rows_ND: Tensor) -> Tensor:
        """sums_NF, in `row_dtype`: what the candidates add to each output over the raw row. No request changes it."""
        sums: list[Tensor] = []
        for part_ND, weight_HD in self._over_raw_row(rows_ND.to(self.row_dtype)):
            sums.append(functional.linear(part_ND, weight_HD))
        return side_by_side(sums)

    def from_sums(self, sums_NF: Tensor, sums_1F: Tensor) -> Tensor:
        """logits_NO of the candidates' sums, of any floating type, and the request's."""
        sums_NF = sums_NF + sums_1F
        parts: list[Tensor] = []
        start = 0
        for width in self.widths:
            parts.append(sums_NF.narrow(1, start, width))
            start += width
        return self._mixed_logits(parts)[0]

    def of_several(self, rows_ND: Tensor, sums_RF: Tensor, counts: list[int]) -> Tensor:
        """logits_NO of the candidates of R requests, one request's after another's: `counts` of each. fp32."""
        parts: list[Tensor] = []
        start = 0
        for part_ND, weight_HD in self._over_raw_row(rows_ND):
            end = start + weight_HD.shape[0]
            part_NH = rows_ND.new_empty(rows_ND.shape[0], weight_HD.shape[0])
            row = 0
            # A product for each request adds its sums without a pass of their own over all outputs.
            for request, count in enumerate(counts):
                sums_H, of_request_ND = sums_RF[request, start:end], part_ND.narrow(0, row, count)
                torch.addmm(sums_H, of_request_ND, weight_HD.t(), out=part_NH.narrow(0, row, count))
                row += count
            parts.append(part_NH)
            start = end
        return self._mixed_logits(parts)[0]

    def _parts(self, rows_ND: Tensor, sums_1F: Tensor) -> list[Tensor]:
        """Outputs over the raw row, product by product."""
        parts: list[Tensor] = []
        start = 0
        for part_ND, weight_HD in self._over_raw_row(rows_ND.to(self.row_dtype)):
            end = start + weight_HD.shape[0]
            parts.append(self._plus(part_ND, weight_HD, sums_1F[:, start:end]))
            start = end
        return parts

    def _over_raw_row(self, rows_ND: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Columns and weights of each product over the raw row."""
        products: list[tuple[Tensor, Tensor]] = []
        for row, experts in enumerate(self.experts):
            products.append((rows_ND.narrow(1, row * self.width, self.width), experts.weight))  # type: ignore[arg-type]
        for gates in self.row_gates:
            products.append((rows_ND, gates.weight))  # type: ignore[arg-type]
        return products

    def _mixed_logits(self, parts: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """logits_NO of all that is over the raw row, and by level the weights of its experts, empty where it mixes
        none. `parts` are written to."""
        units: list[Tensor] = []
        for crossed in self.crosses:
            parts = crossed(parts[0])
        for part_NH in parts[: len(self.experts)]:
            units.append(_relu(part_NH, self.is_compiled).to(self.dtype))
        # The gates' logits where there are any. No level reads them otherwise.
        logits_NK = parts[-1]
        weights: list[Tensor] = []
        for level in self.levels:
            units, weights_BGE = level(units, logits_NK)
            weights.append(weights_BGE)
        logits: list[Tensor] = []
        for task, tower in enumerate(self.towers):
            logits.append(tower(units[self.unit_of_task[task]]))
        return self.chains(torch.cat(logits, dim=1)), weights

    def _plus(self, rows_ND: Tensor, weight_HD: Tensor, sums_1H: Tensor) -> Tensor:
        if self.is_compiled:
            return functional.linear(rows_ND, weight_HD).float() + sums_1H
        return functional.linear(rows_ND, weight_HD, sums_1H[0])


class ScoringLevel(nn.Module):
    """One level: the units of the level below (at the first level: of its experts' first layer) -> its own units."""

    native_GE: Tensor
    mix_GE: Tensor
    # Annotated here, for TorchScript cannot infer the type of an empty list.
    sources: list[int]
    mixed: list[list[int]]

    def __init__(
        self, level: FrozenLevel, gate_start: int, *, is_first: bool, is_compiled: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.is_first: bool = is_first
        self.is_compiled: bool = is_compiled
        self.dtype: torch.dtype = dtype
        self.num_experts: int = len(level.experts)
        self.first_width: int = len(level.experts[0].layers[0][1])
        groups = _groups(level.experts)
        # Experts that read the same unit are one Linear.
        self.sources = [group[0].source for group in groups]
        self.first = nn.ModuleList([] if is_first else [frozen_linear(*_stacked(group), dtype) for group in groups])
        self.is_deep: bool = len(level.experts[0].layers) > 1
        deeper = [_mlp(expert.layers[1:], dtype) for expert in level.experts] if self.is_deep else []
        self.deeper = nn.ModuleList(deeper)
        self.has_gates: bool = isinstance(level.mix, Gates)
        self.has_fixed_mix: bool = isinstance(level.mix, Tensor)
        transfers = [ScoringTransfers(level.mix, self.num_experts, dtype)] if isinstance(level.mix, list) else []
        self.transfers = nn.ModuleList(transfers)
        gates = level.mix if isinstance(level.mix, Gates) else None
        self.reads_row: bool = gates is not None and gates.reads_row
        self.gate_start: int = gate_start
        self.num_outputs: int = 0
        self.gates = nn.ModuleList()
        mixed = torch.zeros(0)
        if gates is not None:
            self.num_outputs = len(gates.bias_GE)
            mixed = torch.isfinite(gates.bias_GE)
            if not gates.reads_row:
                pairs = zip(gates.weights_ED, gates.bias_GE, strict=True)
                self.gates = nn.ModuleList([frozen_linear(weight, bias, dtype) for weight, bias in pairs])
        elif isinstance(level.mix, Tensor):
            self.num_outputs = len(level.mix)
            mixed = torch.ones_like(level.mix)
        # Pairs that a gate never mixes are not multiplied where that costs a step each.
        self.mixed = [row.nonzero()[:, 0].tolist() for row in mixed]
        native = None if gates is None else gates.native_GE
        self.has_native: bool = native is not None
        self.register_buffer("native_GE", torch.zeros(0) if native is None else native.clone())
        self.register_buffer("mix_GE", level.mix.clone() if isinstance(level.mix, Tensor) else torch.zeros(0))

    def forward(self, units: list[Tensor], row_logits_NK: Tensor) -> tuple[list[Tensor], Tensor]:
        """The level's units, [N, H] each, and weights_BGE that they are mixed by, empty where they are not."""
        hidden: list[Tensor] = []
        if self.is_first:
            hidden = units
        elif self.is_compiled:
            for group, linear in enumerate(self.first):
                hidden.append(torch.relu(linear(units[self.sources[group]])))
        else:
            hidden.append(self._side_by_side(units))
        if self.is_deep:
            experts = self._split_experts(hidden, self.first_width)
            hidden = []
            for expert, layers in enumerate(self.deeper):
                hidden.append(layers(experts[expert]))
        if self.has_gates:
            weights_NGE = self._weights(self._gate_logits(units, row_logits_NK))
            return self._mixed(hidden, weights_NGE), weights_NGE
        if self.has_fixed_mix:
            return self._mixed(hidden, self.mix_GE.unsqueeze(0)), self.mix_GE.unsqueeze(0)
        experts = self._split_experts(hidden, hidden[0].shape[1] if self.is_deep else self.first_width)
        weights_BGE = self.mix_GE
        for transfers in self.transfers:
            experts, weights_BGE = transfers(experts)
        return experts, weights_BGE

    def _gate_logits(self, units: list[Tensor], row_logits_NK: Tensor) -> Tensor:
        if self.reads_row:
            return row_logits_NK.narrow(1, self.gate_start, self.num_outputs * self.num_experts)
        logits: list[Tensor] = []
        for unit, gate in enumerate(self.gates):
            logits.append(gate(units[unit]).float())
        return side_by_side(logits)

    def _weights(self, logits_NK: Tensor) -> Tensor:
        """weights_NGE of gates and native weights together."""
        if self.is_compiled or logits_NK.shape[0] < 32:
            weights_NGE = torch.softmax(logits_NK.reshape(-1, self.num_outputs, self.num_experts), dim=2)
            return weights_NGE + self.native_GE if self.has_native else weights_NGE
        # Over a few experts a softmax is slow where it does not run along the candidates.
        logits_GEN = logits_NK.t().contiguous().view(self.num_outputs, self.num_experts, -1)
        weights_GEN = torch.softmax(logits_GEN, dim=1)
        if self.has_native:
            weights_GEN += self.native_GE.unsqueeze(2)
        return weights_GEN.permute(2, 0, 1).contiguous()

    def _side_by_side(self, units: list[Tensor]) -> Tensor:
        """First layers of all experts of a level above the first, each group's product in its place: [N, E * H]."""
        first_NH = units[0].new_empty(units[0].shape[0], self.num_experts * self.first_width)
        end = 0
        for group, linear in enumerate(self.first):
            weight_HD: Tensor = linear.weight  # type: ignore[assignment]
            bias_H: Tensor = linear.bias  # type: ignore[assignment]
            start, end = end, end + weight_HD.shape[0]
            torch.addmm(bias_H, units[self.sources[group]], weight_HD.t(), out=first_NH[:, start:end])
        return torch.relu_(first_NH)

    def _split_experts(self, hidden: list[Tensor], width: int) -> list[Tensor]:
        experts: list[Tensor] = []
        for part in hidden:
            experts += torch.split(part, width, dim=1)
        return experts

    def _mixed(self, hidden: list[Tensor], weights_BGE: Tensor) -> list[Tensor]:
        if not self.is_compiled:
            experts_NEH = side_by_side(hidden)
            experts_NEH = experts_NEH.view(experts_NEH.shape[0], self.num_experts, -1)
            return list(torch.matmul(weights_BGE, experts_NEH).unbind(1))
        experts = self._split_experts(hidden, hidden[0].shape[1] if self.is_deep else self.first_width)
        units: list[Tensor] = []
        for unit, seen in enumerate(self.mixed):
            sum_NH = weights_BGE[:, unit, seen[0], None] * experts[seen[0]].float()
            for expert in seen[1:]:
                sum_NH = sum_NH + weights_BGE[:, unit, expert, None] * experts[expert].float()
            units.append(sum_NH.to(self.dtype))
        return units


class ScoringTower(nn.Module):
    """A task tower. Its last Linear is computed in fp32. representation_NH -> logits_NO."""

    def __init__(self, layers: Layers, dtype: torch.dtype) -> None:
        super().__init__()
        self.hidden = _mlp(layers[:-1], dtype)
        self.last = frozen_linear(*layers[-1])

    def forward(self, representation_NH: Tensor) -> Tensor:
        """logits_NO of one task."""
        logits_NO: Tensor = self.last(self.hidden(representation_NH).float())
        return logits_NO


def _relu(outputs_NH: Tensor, is_compiled: bool) -> Tensor:
    """ReLU of outputs that have no other reader."""
    # In place saves a pass over a new block of memory. A compiler has none: it fuses this with the product before.
    return torch.relu(outputs_NH) if is_compiled else torch.relu_(outputs_NH)


def _row_gates(frozen: FrozenNetwork) -> list[Gates]:
    return [level.mix for level in frozen.levels if isinstance(level.mix, Gates) and level.mix.reads_row]


def _first_products(frozen: FrozenNetwork) -> tuple[list[Tensor], list[Tensor]]:
    """Weight and bias of all that is multiplied with each raw row: for cross layers first, where there are some."""
    if not frozen.crosses:
        return _over_raw_row(frozen)
    weight, bias = over_raw_row(frozen.crosses)
    return [weight], [bias]


def _over_raw_row(frozen: FrozenNetwork) -> tuple[list[Tensor], list[Tensor]]:
    """Weight and bias of all that reads each raw row, or the crossed one: its experts' first layers, in the first row
    then the gates."""
    groups = _groups(frozen.levels[0].experts)
    assert [group[0].source for group in groups] == list(range(frozen.num_rows))
    weights, biases = map(list, zip(*(_stacked(group) for group in groups), strict=True))
    for gates in _row_gates(frozen):
        assert frozen.num_rows == 1
        # One Linear for all units, whose weights stand one after the other.
        weights[0] = torch.cat([weights[0], *gates.weights_ED])
        biases[0] = torch.cat([biases[0], gates.bias_GE.flatten()])
    return weights, biases


def _groups(experts: Sequence[Expert]) -> list[list[Expert]]:
    """Consecutive experts that read the same unit."""
    groups: list[list[Expert]] = []
    for expert in experts:
        if groups and groups[-1][0].source == expert.source:
            groups[-1].append(expert)
        else:
            groups.append([expert])
    return groups


def _stacked(experts: Sequence[Expert]) -> tuple[Tensor, Tensor]:
    """The experts' first layers as one."""
    weights, biases = zip(*(expert.layers[0] for expert in experts), strict=True)
    return torch.cat(weights), torch.cat(biases)


def _mlp(layers: Layers, dtype: torch.dtype) -> nn.Sequential:
    modules: list[nn.Module] = []
    for weight_HD, bias_H in layers:
        modules += [frozen_linear(weight_HD, bias_H, dtype), nn.ReLU()]
    return nn.Sequential(*modules)


def _by_input(linear: nn.Linear) -> nn.Linear:
    """The same with its weight stored input by input: one row takes as long as reading it, and this is read fastest."""
    linear.weight = nn.Parameter(linear.weight.t().contiguous().t(), requires_grad=False)
    return linear
