"""AITM: transfer of information along chains of tasks (Xi et al., KDD 2021, arXiv 2105.08489). Scripted by TorchScript.

In: rows_BD. Out: fused_BTH. Each task has an MLP of its own over the row. A task that is given another reads two
vectors: what its own MLP says, and what the other transfers, a layer over that one's result. Both are queries, keys and
values of an attention, whose softmax over the two weighs their values (Equations 4 to 6 of the paper). Chains are those
of `given` in the schema (model/tasks/given.py).

Differences to the paper. A task's answer is the product along its chain, so that it cannot be above the one before. The
paper's answer is the tower's own, and its loss has a calibrator against that. Task towers stand behind the result here,
where the paper has one Linear: `tower: []` is that. Every transfer has layers of its own. There is no dropout.

Shapes: B rows, T tasks, S transfers, D input, H width of the last layer.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from model.fusion.experts import UnitExperts
from model.fusion.frozen import Expert, FrozenLevel, FrozenNetwork, Transfer, transfer_matrices, units_of
from model.fusion.levels import Levels, all_widths
from model.fusion.slots import Slots, linear_slots, typed
from model.strict_yaml import StrictModel
from model.tasks.given import in_order


class AITMConfig(StrictModel):
    """Sizes of each task's MLP. The last is the width of what is transferred."""

    kind: Literal["aitm"]
    levels: Levels

    def build(self, input_width: int, num_tasks: int, given: Sequence[int | None]) -> "AITM":
        """The network for rows of `input_width` columns. `given` has the place of the task that each is given.

        Raises ValueError where there is none: nothing would be transferred."""
        steps = in_order(given)
        if not steps:
            raise ValueError(
                "aitm transfers along chains of tasks, and no task is given another; write given: TASK at one of the "
                "schema's tasks, or use kind: no_sharing"
            )
        return AITM(input_width, all_widths(self.levels), num_tasks, steps)


class AITM(nn.Module):
    """MLPs of the tasks, and transfers between their results: rows_BD -> fused_BTH."""

    # Annotated here, for TorchScript.
    steps: list[tuple[int, int]]
    base_TT: Tensor
    moved_STT: Tensor

    def __init__(self, input_width: int, widths: list[int], num_tasks: int, steps: Sequence[tuple[int, int]]) -> None:
        """`steps` are pairs of a task and the one that it is given, which comes before it."""
        super().__init__()
        self.num_tasks: int = num_tasks
        self.output_width: int = widths[-1]
        self.steps = list(steps)
        self.experts = UnitExperts(input_width, widths, [1] * num_tasks, has_one_input=True)
        self.transfers = nn.ModuleList([TransferLayer(self.output_width) for _ in steps])
        base_TT, moved_STT = transfer_matrices(num_tasks, steps)
        self.register_buffer("base_TT", base_TT, persistent=False)
        self.register_buffer("moved_STT", moved_STT, persistent=False)

    def forward(self, rows_BD: Tensor) -> Tensor:
        """fused_BTH of rows_BD."""
        return self._fused_and_shares(rows_BD)[0]

    def _fused_and_shares(self, rows_BD: Tensor) -> tuple[Tensor, Tensor]:
        """fused_BTH, and shares_BS: the weight of what is transferred, by step."""
        results = list(self.experts(rows_BD.unsqueeze(1)).unbind(1))
        shares: list[Tensor] = []
        for step, transfer in enumerate(self.transfers):
            task, given = self.steps[step]
            result_BH, share_B1 = transfer(results[given], results[task])
            results[task] = result_BH
            shares.append(share_B1)
        return torch.stack(results, dim=1), torch.cat(shares, dim=1)

    @torch.jit.export
    def expert_weights(self, rows_BD: Tensor) -> list[Tensor]:
        """One level, [B, T, T]: of each task the weight of its own MLP, and of the transfer from the one that it is
        given."""
        _, shares_BS = self._fused_and_shares(rows_BD)
        return [self.base_TT + torch.tensordot(shares_BS, self.moved_STT, dims=1)]

    def frozen(self, num_tasks: int) -> FrozenNetwork:
        """The network as data (model/fusion/frozen.py)."""
        sources = units_of([1] * num_tasks, is_first=True)
        experts = [Expert(*pair) for pair in zip(sources, self.experts.layers(), strict=True)]
        layers = zip(self.steps, typed(self.transfers, TransferLayer), strict=True)
        transfers = [
            Transfer(*step, (layer.inform.weight.detach(), layer.inform.bias.detach()), layer.attend.weight.detach())
            for step, layer in layers
        ]
        return FrozenNetwork(1, [FrozenLevel(experts, transfers)], list(range(num_tasks)))

    def slots(self, tasks: list[str]) -> Slots:
        """All layers by name (model/fusion/slots.py). A transfer has the name of the task that receives it."""
        slots = self.experts.slots("expert", tasks)
        for (task, _), layer in zip(self.steps, typed(self.transfers, TransferLayer), strict=True):
            name = f"transfer.{tasks[task]}"
            slots |= linear_slots(f"{name}.inform", layer.inform.weight, layer.inform.bias)
            for part, weight_HH in zip(("query", "key", "value"), layer.attend.weight.detach().chunk(3), strict=True):
                slots[f"{name}.{part}.weight"] = weight_HH
        return slots


class TransferLayer(nn.Module):
    """Attention over what another task transfers and a task's own result (the paper's AIT)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.root: float = math.sqrt(width)
        self.inform = nn.Linear(width, width)
        # Query, key and value, one under the other. Without biases, as the authors' code has them.
        self.attend = nn.Linear(width, 3 * width, bias=False)

    def forward(self, given_BH: Tensor, own_BH: Tensor) -> tuple[Tensor, Tensor]:
        """(result_BH, share_B1): the weighted sum of both values, and the weight of what is transferred."""
        informed_BH = torch.relu(self.inform(given_BH))
        query_BH, key_BH, value_BH = self.attend(informed_BH).chunk(3, dim=1)
        own_query_BH, own_key_BH, own_value_BH = self.attend(own_BH).chunk(3, dim=1)
        logits_B1 = (query_BH * key_BH).sum(1, keepdim=True) - (own_query_BH * own_key_BH).sum(1, keepdim=True)
        # A softmax over two is the sigmoid of their difference.
        share_B1 = torch.sigmoid(logits_B1 / self.root)
        return share_B1 * value_BH + (1 - share_B1) * own_value_BH, share_B1
