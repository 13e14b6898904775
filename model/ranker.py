"""The ranker: embeddings -> cross layers -> fusion network -> task towers -> logits -> answers.

`Ranker` is what training trains. model/export/scoring_module.py is the same network as it scores.

Shapes: B rows, N candidates, T tasks, J tasks with a base logit, O outputs, D columns of the dense row, H width of a
representation.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Self

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from model.cross_layers import CrossConfig
from model.embeddings.embeddings import Embeddings
from model.features.block import BlockTensors, block_inputs, row_columns
from model.features.encoder import FittedFeatures
from model.fusion import FusionConfig, NoSharingConfig, build_network
from model.fusion.experts import side_by_side
from model.fusion.frozen import FrozenNetwork
from model.fusion.slots import Layers, Slots, layer_slots, linear_slots, linears, typed
from model.schema import Block, FeedSchema
from model.strict_yaml import StrictModel
from model.tasks.chains import Chains
from model.tasks.given import given_before
from model.tasks.task import BaseTask


class NetworkConfig(StrictModel):
    """A fusion network, the cross layers before it if any, and the hidden widths of the task towers behind it."""

    fusion: FusionConfig
    cross: CrossConfig | None = None
    tower: tuple[PositiveInt, ...] = (64,)

    @model_validator(mode="after")
    def _check_cross(self) -> Self:
        if self.cross is not None and self.has_own_embeddings:
            raise ValueError(
                "cross multiplies the columns of one row, and fusion.own_embeddings has one for each task; give one of "
                "the two"
            )
        return self

    @property
    def has_own_embeddings(self) -> bool:
        """True where every task has embedding tables of its own. The dense row is then one part a task, side by
        side."""
        return isinstance(self.fusion, NoSharingConfig) and self.fusion.own_embeddings


class Tower(nn.Module):
    """A task tower: hidden Linear layers with ReLU, then one Linear to the logits. representation_BH -> logits_BO.

    `base`, where a loss wants it, is a second Linear of the last hidden layer. No answer reads it."""

    base: nn.Linear | None

    def __init__(self, input_width: int, hidden: tuple[int, ...], num_outputs: int, *, has_base: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(input_width, width), nn.ReLU()]
            input_width = width
        layers.append(nn.Linear(input_width, num_outputs))
        self.layers = nn.Sequential(*layers)
        self.base = nn.Linear(input_width, 1) if has_base else None

    def forward(self, representation_BH: Tensor) -> Tensor:
        """logits_BO of one task."""
        logits_BO: Tensor = self.layers(representation_BH)
        return logits_BO

    def with_base(self, representation_BH: Tensor) -> tuple[Tensor, Tensor | None]:
        """logits_BO of one task, and its base logits [B, 1]."""
        if self.base is None:
            return self(representation_BH), None
        *hidden, last = self.layers
        for layer in hidden:
            representation_BH = layer(representation_BH)
        return last(representation_BH), self.base(representation_BH)


class Network(nn.Module):
    """The dense part: rows_BD -> logits_BO."""

    def __init__(
        self,
        config: NetworkConfig,
        input_width: int,
        output_counts: Sequence[int],
        given: Sequence[int | None] = (),
        bases: Sequence[bool] = (),
        units: nn.ModuleList | None = None,
    ) -> None:
        """`output_counts` has each task's. `given` has the place of the task that each is given, where any is. `bases`
        says which towers have a base logit, by default none. `units` are those of lists with `attention: mlp`,
        which the embeddings before it call (model/embeddings/histories.py)."""
        super().__init__()
        self.has_own_embeddings = config.has_own_embeddings
        self.config = config.fusion
        self.cross = None if config.cross is None else config.cross.build(input_width)
        self.fusion = build_network(config.fusion, input_width, len(output_counts), given)
        towers = zip(output_counts, bases or [False] * len(output_counts), strict=True)
        self.towers = nn.ModuleList(
            [Tower(self.fusion.output_width, config.tower, count, has_base=has_base) for count, has_base in towers]
        )
        self.chains = Chains(given, output_counts)
        self.activation_units = nn.ModuleList() if units is None else units
        self._given = tuple(given)

    def forward(self, rows_BD: Tensor) -> Tensor:
        """logits_BO in task order, of unconditional probabilities. A regression task's logit is its standardised
        prediction."""
        fused_BTH = self.fusion(self.crossed(rows_BD))
        logits: list[Tensor] = []
        # unbind, not an index a task: its backward is one stack, an index's is a tensor of zeros for each task.
        inputs = fused_BTH.unbind(1)
        for task, tower in enumerate(self.towers):
            logits.append(tower(inputs[task]))
        unconditional_BO: Tensor = self.chains(torch.cat(logits, dim=1))
        return unconditional_BO

    def towers_of(self, task: int) -> list[nn.Module]:
        """The towers that a task's logit is made of: its own, and those of the tasks along its chain."""
        return [self.towers[place] for place in given_before(task, self._given)]

    def crossed(self, rows_BD: Tensor) -> Tensor:
        """The rows as the fusion network reads them, [B, D]: behind the cross layers."""
        return rows_BD if self.cross is None else self.cross(rows_BD)

    def with_bases(self, rows_BD: Tensor) -> tuple[Tensor, Tensor | None]:
        """logits_BO, and bases_BJ of the tasks that have a base logit."""
        inputs = self.fusion(self.crossed(rows_BD)).unbind(1)
        pairs = [tower.with_base(part) for tower, part in zip(typed(self.towers, Tower), inputs, strict=True)]
        bases = [base for _, base in pairs if base is not None]
        logits_BO: Tensor = self.chains(torch.cat([logits for logits, _ in pairs], dim=1))
        return logits_BO, torch.cat(bases, dim=1) if bases else None

    def frozen(self, num_tasks: int) -> FrozenNetwork:
        """The fusion network as data (model/fusion/frozen.py)."""
        frozen: FrozenNetwork = self.fusion.frozen(num_tasks)
        return frozen if self.cross is None else frozen._replace(crosses=self.cross.frozen())

    def tower_layers(self) -> list[Layers]:
        """Each task tower's weights and biases."""
        return [linears(list(tower.layers)) for tower in typed(self.towers, Tower)]

    def slots(self, tasks: list[str]) -> Slots:
        """Every layer's weight and bias by name, views that are written to (model/fusion/slots.py)."""
        slots = ({} if self.cross is None else self.cross.slots()) | self.fusion.slots(tasks)
        for task, layers in zip(tasks, self.tower_layers(), strict=True):
            slots |= layer_slots(f"tower.{task}", layers)
        for task, tower in zip(tasks, typed(self.towers, Tower), strict=True):
            if tower.base is not None:
                slots |= linear_slots(f"tower.{task}.base", tower.base.weight, tower.base.bias)
        return slots


class Ranker(nn.Module):
    """The trained ranker: `embeddings` (two blocks -> rows_BD, with `width`) and the dense network behind it."""

    def __init__(self, embeddings: Embeddings, network: Network) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.network = network
        embeddings.use_units(network.activation_units)

    def forward(self, request: BlockTensors, candidate: BlockTensors) -> Tensor:
        """logits_BO of a batch. Both blocks have B rows."""
        logits_BO: Tensor = self.network(self.embeddings(request, candidate))
        return logits_BO


class Answers(nn.Module):
    """Logits -> answers in each task's unit: a probability, or a quantity from 0 to the task's upper bound, of
    training labels. logits_NO -> answers_NO.

    Neighbouring tasks of one kind are one part."""

    def __init__(self, schema: FeedSchema, fitted: FittedFeatures) -> None:
        super().__init__()
        runs: list[list[BaseTask]] = [list(run) for _, run in groupby(schema.tasks, key=type)]
        self.widths = [sum(len(task.outputs) for task in run) for run in runs]
        self.parts = nn.ModuleList([type(run[0]).answers(run, fitted.targets) for run in runs])

    def forward(self, logits_NO: Tensor) -> Tensor:
        """answers_NO."""
        logits = torch.split(logits_NO, self.widths, dim=1)
        answers: list[Tensor] = []
        for part, answer in enumerate(self.parts):
            answers.append(answer(logits[part]))
        return side_by_side(answers)


def row_width(schema: FeedSchema, block: Block | None = None) -> int:
    """Columns of the dense row, or of a task's part of it: all, or those that come from a block alone."""
    if block is None:
        return sum(width for _, width in row_columns(schema))
    dims = {name: table.dim for table in schema.tables for name in table.features}
    return sum(width for _, width in block_inputs(schema, block).widths(dims))
