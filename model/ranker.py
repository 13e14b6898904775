"""The ranker: embeddings -> fusion network -> task towers -> logits -> answers.

`Ranker` is what training trains. model/export/scoring_module.py is the same network as it scores.

Shapes: B rows, N candidates, T tasks, O outputs, D columns of the dense row, H width of a representation.
"""

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from model.embeddings.embeddings import Embeddings
from model.features.block import BlockTensors, block_inputs
from model.features.encoder import FittedFeatures
from model.fusion import FusionConfig, NoSharingConfig
from model.fusion.frozen import FrozenNetwork
from model.fusion.slots import Layers, Slots, layer_slots, linears, typed
from model.schema import BinaryTask, Block, FeedSchema, RegressionTask
from model.strict_yaml import StrictModel


class NetworkConfig(StrictModel):
    """A fusion network and the hidden widths of the task towers behind it."""

    fusion: FusionConfig
    tower: tuple[PositiveInt, ...] = (64,)

    @property
    def has_own_embeddings(self) -> bool:
        """True where every task has embedding tables of its own. The dense row is then one part a task, side by
        side."""
        return isinstance(self.fusion, NoSharingConfig) and self.fusion.own_embeddings


class Tower(nn.Module):
    """A task tower: hidden Linear layers with ReLU, then one Linear to the logit. representation_BH -> logit_B1."""

    def __init__(self, input_width: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(input_width, width), nn.ReLU()]
            input_width = width
        layers.append(nn.Linear(input_width, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, representation_BH: Tensor) -> Tensor:
        """logit_B1."""
        logit_B1: Tensor = self.layers(representation_BH)
        return logit_B1


class Network(nn.Module):
    """The dense part: rows_BD -> logits_BO."""

    def __init__(self, config: NetworkConfig, input_width: int, num_tasks: int) -> None:
        super().__init__()
        self.has_own_embeddings = config.has_own_embeddings
        self.config = config.fusion
        self.fusion = config.fusion.build(input_width, num_tasks)
        self.towers = nn.ModuleList([Tower(self.fusion.output_width, config.tower) for _ in range(num_tasks)])

    def forward(self, rows_BD: Tensor) -> Tensor:
        """logits_BO in task order. A regression task's logit is its standardised prediction."""
        fused_BTH = self.fusion(rows_BD)
        logits: list[Tensor] = []
        # unbind, not an index a task: its backward is one stack, an index's is a tensor of zeros for each task.
        inputs = fused_BTH.unbind(1)
        for task, tower in enumerate(self.towers):
            logits.append(tower(inputs[task]))
        return torch.cat(logits, dim=1)

    def frozen(self, num_tasks: int) -> FrozenNetwork:
        """The fusion network as data (model/fusion/frozen.py)."""
        frozen: FrozenNetwork = self.fusion.frozen(num_tasks)
        return frozen

    def tower_layers(self) -> list[Layers]:
        """Each task tower's weights and biases."""
        return [linears(list(tower.layers)) for tower in typed(self.towers, Tower)]

    def slots(self, tasks: list[str]) -> Slots:
        """Every layer's weight and bias by name, views that are written to (model/fusion/slots.py)."""
        slots = self.fusion.slots(tasks)
        for task, layers in zip(tasks, self.tower_layers(), strict=True):
            slots |= layer_slots(f"tower.{task}", layers)
        return slots


class Ranker(nn.Module):
    """The trained ranker: `embeddings` (two blocks -> rows_BD, with `width`) and the dense network behind it."""

    def __init__(self, embeddings: Embeddings, network: Network) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.network = network

    def forward(self, request: BlockTensors, candidate: BlockTensors) -> Tensor:
        """logits_BO of a batch. Both blocks have B rows."""
        logits_BO: Tensor = self.network(self.embeddings(request, candidate))
        return logits_BO


class Answers(nn.Module):
    """Logits -> answers in each task's unit: a probability, or a quantity from 0 to the task's upper bound, of
    training labels. logits_NO -> answers_NO."""

    offset_T: Tensor
    scale_T: Tensor
    upper_T: Tensor
    is_regression_T: Tensor
    is_log_T: Tensor

    def __init__(self, schema: FeedSchema, fitted: FittedFeatures) -> None:
        super().__init__()
        offsets, scales, uppers, is_regression, is_log = [], [], [], [], []
        for task in schema.tasks:
            if isinstance(task, BinaryTask):
                # Negatives kept at rate w inflate the odds by 1/w (He et al. 2014, section 6.3): undone in the logit.
                offsets.append(float(torch.tensor(task.negative_sampling_rate, dtype=torch.float64).log()))
                scales.append(1.0)
                uppers.append(1.0)
            else:
                offsets.append(fitted.targets[task.name].mean)
                scales.append(fitted.targets[task.name].scale)
                uppers.append(fitted.targets[task.name].upper)
            is_regression.append(isinstance(task, RegressionTask))
            is_log.append(isinstance(task, RegressionTask) and task.transform == "log1p")
        self.register_buffer("offset_T", torch.tensor(offsets))
        self.register_buffer("scale_T", torch.tensor(scales))
        self.register_buffer("upper_T", torch.tensor(uppers))
        self.register_buffer("is_regression_T", torch.tensor(is_regression))
        self.register_buffer("is_log_T", torch.tensor(is_log))

    def forward(self, logits_NO: Tensor) -> Tensor:
        """answers_NO."""
        values_NO = logits_NO * self.scale_T + self.offset_T
        # The bound comes last: it makes even an infinite logit a finite answer, and leaves NaN what it is.
        quantities_NO = torch.where(self.is_log_T, torch.expm1(values_NO), values_NO)
        quantities_NO = torch.minimum(quantities_NO.clamp(min=0.0), self.upper_T)
        return torch.where(self.is_regression_T, quantities_NO, torch.sigmoid(values_NO))


def row_width(schema: FeedSchema, block: Block) -> int:
    """Columns of the dense row, or of a task's part of it, that come from a block."""
    dims = {name: table.dim for table in schema.tables for name in table.features}
    return sum(width for _, width in block_inputs(schema, block).widths(dims))
