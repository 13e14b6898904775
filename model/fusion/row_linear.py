"""The Linear layers that read the raw row, [request columns | candidate columns]. Scripted by TorchScript.

In training every row has a request of its own. In scoring all rows share one: its columns are then multiplied once,
and only the candidates' columns for every row.

Shapes: B rows, D columns of the row, H outputs.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class RowLinear(nn.Linear):
    """A Linear over rows_BD (or [B, P, D]). With `request_width` set, the first so many columns must be the same in
    all rows; what they add to each output is then computed from the first row alone."""

    def __init__(self, input_width: int, output_width: int) -> None:
        super().__init__(input_width, output_width)
        self.request_width: int = 0

    def forward(self, rows_BD: Tensor) -> Tensor:
        """outputs_BH."""
        if self.request_width == 0:
            return functional.linear(rows_BD, self.weight, self.bias)
        width, rest = self.request_width, self.in_features - self.request_width
        flat_BD = rows_BD.reshape(-1, self.in_features)
        once_1H = functional.linear(flat_BD[:1, :width], self.weight[:, :width], self.bias)
        # Not addmm: TorchScript takes it apart into these two, and would then differ from eager in the last digit.
        outputs_BH = torch.mm(flat_BD.narrow(1, width, rest), self.weight.narrow(1, width, rest).t()) + once_1H
        return outputs_BH.view(rows_BD.shape[:-1] + (self.out_features,))  # noqa: RUF005 - TorchScript has no unpacking


def share_request(network: nn.Module, request_width: int) -> None:
    """Makes a network score rows that share their first `request_width` columns; it can no longer be trained."""
    for module in network.modules():
        if isinstance(module, RowLinear):
            module.request_width = request_width
