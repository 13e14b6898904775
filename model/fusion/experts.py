"""The expert MLPs of one fusion level, computed in few large operations. Scripted by TorchScript.

In: units_BUD (or [B, 1, D] where all units read the raw row). Out: experts_BEH, ReLU after every layer, the last too.
The first layer is one Linear per distinct input, for all experts that read it. Deeper layers, where each expert has an
input of its own, are one batched product for all experts.

Shapes: B rows, U units, E experts of the level, D input, H width of a layer.
"""

import itertools
import math

import torch
from torch import Tensor, nn

from model.fusion.layers import RowLinear, linear_and_gate
from model.fusion.slots import Layers, Slots, layer_slots, typed


class UnitExperts(nn.Module):
    """All experts of a level. `experts_per_unit` says how many each unit has, in the order of their outputs.

    Units read one raw row (`has_one_input`), a raw row each (`has_own_rows`), or what the level below gives them."""

    def __init__(
        self,
        input_width: int,
        widths: list[int],
        experts_per_unit: list[int],
        *,
        has_one_input: bool,
        has_own_rows: bool = False,
    ) -> None:
        super().__init__()
        self.num_experts: int = sum(experts_per_unit)
        self.first_width: int = widths[0]
        counts = [self.num_experts] if has_one_input else experts_per_unit
        self.first = nn.ModuleList([RowLinear(input_width, count * widths[0]) for count in counts])
        self.deeper = nn.ModuleList(
            [ExpertLinear(self.num_experts, before, after) for before, after in itertools.pairwise(widths)]
        )

    def forward(self, units_BUD: Tensor) -> Tensor:
        """experts_BEH of the units' inputs."""
        # unbind, not an index a unit: its backward is one stack, an index's is a tensor of zeros for each unit.
        inputs = units_BUD.unbind(1)
        hidden: list[Tensor] = []
        for unit, first in enumerate(self.first):
            hidden.append(first(inputs[unit]))
        return self._deeper_layers(hidden)

    def with_gates(self, units_BUD: Tensor, weights: list[Tensor], biases: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """experts_BEH, and the logits, [B, K] each, of gates with `weights` [K, D] and `biases` [K] on the first units'
        inputs. Experts and gate of a unit are one product, which pays where a backward follows. There are two units at
        least: the outputs of one alone would be a view, which is not written to."""
        inputs = units_BUD.unbind(1)
        hidden: list[Tensor] = []
        logits: list[Tensor] = []
        for unit, first in enumerate(self.first):
            if unit < len(weights):
                pair = linear_and_gate(inputs[unit], first.weight, first.bias, weights[unit], biases[unit])  # type: ignore[arg-type]
                hidden.append(pair[0])
                logits.append(pair[1])
            else:
                hidden.append(first(inputs[unit]))
        return self._deeper_layers(hidden), logits

    def _deeper_layers(self, hidden: list[Tensor]) -> Tensor:
        """experts_BEH of their first layers' outputs before the ReLU, which are written to."""
        # In place: no backward of a product reads its output, and a copy would cost as much as the ReLU.
        experts_BEH = torch.relu_(side_by_side(hidden)).view(-1, self.num_experts, self.first_width)
        for layer in self.deeper:
            experts_BEH = torch.relu_(layer(experts_BEH))
        return experts_BEH

    def layers(self) -> list[Layers]:
        """Every expert's weights and biases, layer by layer, views that are written to."""
        experts: list[Layers] = []
        for linear in typed(self.first, nn.Linear):
            weights_HD = torch.split(linear.weight.detach(), self.first_width)
            biases_H = torch.split(linear.bias.detach(), self.first_width)
            experts += [[layer] for layer in zip(weights_HD, biases_H, strict=True)]
        for layer in typed(self.deeper, ExpertLinear):
            for expert, weight_DH, bias_1H in zip(experts, layer.weight_EDH, layer.bias_E1H, strict=True):
                expert.append((weight_DH.t(), bias_1H[0]))
        return experts

    def slots(self, prefix: str, names: list[str]) -> Slots:
        """Every expert's layers by `prefix` and the expert's name."""
        slots: Slots = {}
        for name, expert in zip(names, self.layers(), strict=True):
            slots |= layer_slots(f"{prefix}.{name}", expert)
        return slots


class GatedExperts(nn.Module):
    """A level's experts and the gates that read the same inputs as they: gate u unit u's, all of them a lone row."""

    def __init__(self, experts: UnitExperts, gates: list[RowLinear]) -> None:
        super().__init__()
        self.experts = experts
        self.gates = nn.ModuleList(gates)

    def experts_and_logits(self, units_BUD: Tensor) -> tuple[Tensor, list[Tensor]]:
        """experts_BEH, and each gate's logits, [B, K]."""
        if torch.is_grad_enabled() and units_BUD.size(1) > 1:
            weights: list[Tensor] = []
            biases: list[Tensor] = []
            for gate in self.gates:
                weights.append(gate.weight)  # type: ignore[arg-type]
                biases.append(gate.bias)  # type: ignore[arg-type]
            pair: tuple[Tensor, list[Tensor]] = self.experts.with_gates(units_BUD, weights, biases)
            return pair
        inputs = units_BUD.unbind(1)
        logits: list[Tensor] = []
        for unit, gate in enumerate(self.gates):
            logits.append(gate(inputs[unit if len(inputs) > 1 else 0]))
        experts_BEH: Tensor = self.experts(units_BUD)
        return experts_BEH, logits


def side_by_side(parts: list[Tensor]) -> Tensor:
    """The columns of all parts. A lone part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class ExpertLinear(nn.Module):
    """E independent Linear layers: inputs_BED -> outputs_BEH, initialised as nn.Linear is."""

    def __init__(self, num_experts: int, input_width: int, output_width: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(input_width)
        self.weight_EDH = nn.Parameter(torch.empty(num_experts, input_width, output_width).uniform_(-bound, bound))
        self.bias_E1H = nn.Parameter(torch.empty(num_experts, 1, output_width).uniform_(-bound, bound))

    def forward(self, inputs_BED: Tensor) -> Tensor:
        """outputs_BEH, one product for all experts."""
        return torch.baddbmm(self.bias_E1H, inputs_BED.transpose(0, 1), self.weight_EDH).transpose(0, 1)
