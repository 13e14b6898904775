"""The ranker: embeddings -> fusion network -> task towers -> logits, and the module that is exported from it.

`Ranker` is what training trains (TorchRec embeddings). `ScoringModule` is what is exported: the same network on plain
torch embedding tables, user and context embedded once a request, answers in each task's own unit; TorchScript scripts
it and a process needs torch alone to run it.

Shapes: B rows, N candidates, T tasks, D columns of the dense row, H width of a representation, K single-id features,
L list features, V list values in all.
"""

import copy
import io
import warnings
from pathlib import Path

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from model.embeddings import BlockTensors, Embeddings, block_features, owners, table_name
from model.features import FittedFeatures
from model.fusion import FusionConfig, NoSharingConfig
from model.fusion.row_linear import share_request
from model.fusion.slots import Slots, layer_slots, linears
from model.schema import BinaryTask, Block, FeedSchema, RegressionTask
from model.strict_yaml import StrictModel


class NetworkConfig(StrictModel):
    """A fusion network and the hidden widths of the task towers behind it."""

    fusion: FusionConfig
    tower: tuple[PositiveInt, ...] = (64,)

    @property
    def has_own_embeddings(self) -> bool:
        """Whether every task has embedding tables of its own; the dense row is then one part a task, side by side."""
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
    """The dense part: rows_BD -> logits_BT."""

    def __init__(self, config: NetworkConfig, input_width: int, num_tasks: int) -> None:
        super().__init__()
        self.has_own_embeddings = config.has_own_embeddings
        self.fusion = config.fusion.build(input_width, num_tasks)
        self.towers = nn.ModuleList([Tower(self.fusion.output_width, config.tower) for _ in range(num_tasks)])

    def forward(self, rows_BD: Tensor) -> Tensor:
        """logits_BT in task order; a regression task's logit is its standardised prediction."""
        fused_BTH = self.fusion(rows_BD)
        logits: list[Tensor] = []
        # unbind, not an index a task: its backward is one stack, an index's is a tensor of zeros for each task.
        inputs = fused_BTH.unbind(1)
        for task, tower in enumerate(self.towers):
            logits.append(tower(inputs[task]))
        return torch.cat(logits, dim=1)

    def slots(self, tasks: list[str]) -> Slots:
        """Every layer's weight and bias by name, views that are written to (model/fusion/slots.py)."""
        slots = self.fusion.slots(tasks)
        for task, tower in zip(tasks, self.towers, strict=True):
            assert isinstance(tower, Tower)
            slots |= layer_slots(f"tower.{task}", linears(list(tower.layers)))
        return slots


class Ranker(nn.Module):
    """What is trained: `embeddings` (two blocks -> rows_BD, with `width`) and the dense network behind it."""

    def __init__(self, embeddings: Embeddings, network: Network) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.network = network

    def forward(self, request: BlockTensors, candidate: BlockTensors) -> Tensor:
        """logits_BT of a batch; both blocks have B rows."""
        logits_BT: Tensor = self.network(self.embeddings(request, candidate))
        return logits_BT


class Answers(nn.Module):
    """Logits -> answers in each task's unit: a probability, or a quantity >= 0. logits_NT -> answers_NT."""

    offset_T: Tensor
    scale_T: Tensor
    is_regression_T: Tensor
    is_log_T: Tensor

    def __init__(self, schema: FeedSchema, fitted: FittedFeatures) -> None:
        super().__init__()
        offsets, scales, is_regression, is_log = [], [], [], []
        for task in schema.tasks:
            if isinstance(task, BinaryTask):
                # Negatives kept at rate w inflate the odds by 1/w (He et al. 2014, section 6.3): undone in the logit.
                offsets.append(float(torch.tensor(task.negative_sampling_rate, dtype=torch.float64).log()))
                scales.append(1.0)
            else:
                offsets.append(fitted.targets[task.name].mean)
                scales.append(fitted.targets[task.name].scale)
            is_regression.append(isinstance(task, RegressionTask))
            is_log.append(isinstance(task, RegressionTask) and task.transform == "log1p")
        self.register_buffer("offset_T", torch.tensor(offsets))
        self.register_buffer("scale_T", torch.tensor(scales))
        self.register_buffer("is_regression_T", torch.tensor(is_regression))
        self.register_buffer("is_log_T", torch.tensor(is_log))

    def forward(self, logits_NT: Tensor) -> Tensor:
        """answers_NT."""
        values_NT = logits_NT * self.scale_T + self.offset_T
        # exp(60) is far beyond any play time, and float32 still holds it: an absurd logit stays a finite answer.
        quantities_NT = torch.where(self.is_log_T, torch.expm1(values_NT.clamp(max=60.0)), values_NT)
        return torch.where(self.is_regression_T, quantities_NT.clamp(min=0.0), torch.sigmoid(values_NT))


class BlockEmbeddings(nn.Module):
    """Plain-torch embeddings of one block: its ids and numbers -> rows of the block's part of the dense row.

    `owner` is the task whose own tables are read, or None for those that all tasks share."""

    def __init__(
        self, schema: FeedSchema, block: Block, tables: dict[str, nn.Parameter], owner: str | None = None
    ) -> None:
        super().__init__()
        ids, lists, _ = block_features(schema, block)
        table_of = {name: table for table in schema.tables for name in table.features}
        weights = {name: tables[table_name(table.name, owner)] for name, table in table_of.items()}
        self.single = nn.ModuleList([_IdEmbedding(weights[feature.name]) for feature in ids])
        self.pooled = nn.ModuleList(
            [_ListEmbedding(weights[feature.name], table_of[feature.name].pooling) for feature in lists]
        )

    def forward(self, ids_BK: Tensor, values_V: Tensor, lengths_LB: Tensor, numbers_BN: Tensor) -> Tensor:
        """The block's columns of rows_BD."""
        parts: list[Tensor] = []
        for column, embedding in enumerate(self.single):
            parts.append(embedding(ids_BK[:, column]))
        start = 0
        for row, bag in enumerate(self.pooled):
            lengths_B = lengths_LB[row]
            end = start + int(lengths_B.sum())
            parts.append(bag(values_V[start:end], lengths_B))
            start = end
        parts.append(numbers_BN)
        return torch.cat(parts, dim=1)


class _IdEmbedding(nn.Module):
    def __init__(self, table: nn.Parameter) -> None:
        super().__init__()
        self.table = table

    def forward(self, ids_B: Tensor) -> Tensor:
        return functional.embedding(ids_B, self.table)


class _ListEmbedding(nn.Module):
    def __init__(self, table: nn.Parameter, pooling: str) -> None:
        super().__init__()
        self.table = table
        self.pooling: str = pooling

    def forward(self, values_V: Tensor, lengths_B: Tensor) -> Tensor:
        offsets_B = torch.cumsum(lengths_B, dim=0) - lengths_B
        return functional.embedding_bag(values_V, self.table, offsets_B, mode=self.pooling)


def _width(schema: FeedSchema, block: Block) -> int:
    """Columns of the dense row, or of a task's part of it, that come from a block."""
    dims = {name: table.dim for table in schema.tables for name in table.features}
    return sum(dims.get(feature.name, 1) for feature in schema.block(block))


class ScoringModule(nn.Module):
    """What is exported: one request block and N candidates -> answers_NT."""

    def __init__(self, schema: FeedSchema, fitted: FittedFeatures, network: Network, tables: dict[str, Tensor]) -> None:
        super().__init__()
        # One Parameter per table, however many features read it: shared tables stay shared in the file.
        shared = {name: nn.Parameter(weight.clone(), requires_grad=False) for name, weight in tables.items()}
        whose = owners(schema, for_each_task=network.has_own_embeddings)
        self.request = nn.ModuleList([BlockEmbeddings(schema, "request", shared, owner) for owner in whose])
        self.candidate = nn.ModuleList([BlockEmbeddings(schema, "candidate", shared, owner) for owner in whose])
        # The user's and the context's columns are the same for all candidates of a request.
        self.network = copy.deepcopy(network).requires_grad_(False)
        share_request(self.network, _width(schema, "request"))
        self.answers = Answers(schema, fitted)

    def forward(
        self,
        request_ids_1K: Tensor,
        request_values_V: Tensor,
        request_lengths_L1: Tensor,
        request_numbers_1D: Tensor,
        ids_NK: Tensor,
        values_V: Tensor,
        lengths_LN: Tensor,
        numbers_ND: Tensor,
    ) -> Tensor:
        """answers_NT: a probability per binary task, a quantity in the label's unit per regression task."""
        parts: list[Tensor] = []
        for request, candidate in zip(self.request, self.candidate):  # noqa: B905 - TorchScript's zip takes no strict
            request_1D = request(request_ids_1K, request_values_V, request_lengths_L1, request_numbers_1D)
            parts.append(request_1D.expand(ids_NK.shape[0], -1))
            parts.append(candidate(ids_NK, values_V, lengths_LN, numbers_ND))
        answers_NT: Tensor = self.answers(self.network(torch.cat(parts, dim=1)))
        return answers_NT


def write_torchscript(module: torch.jit.ScriptModule, path: Path) -> None:
    """Writes a scripted module. Raises OSError where the disk is full: torch's own writer to a path would end the
    whole process there, so the file is made in memory first."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*")  # deprecated without a successor (docs/decisions)
        torch.jit.save(module, content)
    path.write_bytes(content.getbuffer())
