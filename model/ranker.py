"""The ranker: embeddings -> fusion network -> task towers -> logits, and the module that is exported from it.

`Ranker` is what training trains (TorchRec embeddings). `ScoringModule` is what is exported: the same network on plain
torch embedding tables, user and context embedded and multiplied once a request, answers in each task's own unit;
TorchScript scripts it and a process needs torch alone to run it.

Shapes: B rows, N candidates, T tasks, D columns of the dense row, H width of a representation, K single-id features,
L list features, V list values in all, F outputs over the raw row (model/scoring_network.py).
"""

import io
import warnings
from pathlib import Path

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from model.block_rows import BlockRows
from model.block_tensors import BlockTensors
from model.embeddings import Embeddings, owners
from model.features import FittedFeatures
from model.fusion import FusionConfig, NoSharingConfig
from model.fusion.experts import side_by_side
from model.fusion.frozen import FrozenNetwork
from model.fusion.names import mixed_names
from model.fusion.slots import Layers, Slots, layer_slots, linears, typed
from model.schema import BinaryTask, Block, FeedSchema, RegressionTask
from model.scoring_network import RequestSums, ScoringNetwork
from model.strict_yaml import StrictModel
from model.tables import StackedTables, without_tables


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
        self.config = config.fusion
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
    """Logits -> answers in each task's unit: a probability, or a quantity from 0 to the task's upper bound, of
    training labels. logits_NT -> answers_NT."""

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

    def forward(self, logits_NT: Tensor) -> Tensor:
        """answers_NT."""
        values_NT = logits_NT * self.scale_T + self.offset_T
        # The bound comes last: it makes even an infinite logit a finite answer, and leaves NaN what it is.
        quantities_NT = torch.where(self.is_log_T, torch.expm1(values_NT), values_NT)
        quantities_NT = torch.minimum(quantities_NT.clamp(min=0.0), self.upper_T)
        return torch.where(self.is_regression_T, quantities_NT, torch.sigmoid(values_NT))


def row_width(schema: FeedSchema, block: Block) -> int:
    """Columns of the dense row, or of a task's part of it, that come from a block."""
    dims = {name: table.dim for table in schema.tables for name in table.features}
    return sum(dims.get(feature.name, 1) for feature in schema.block(block))


class ScoringModule(nn.Module):
    """What is exported: one request block and N candidates -> answers_NT.

    `forward` is the whole. Its steps: `request_sums` once a request, `candidate_rows`, then `answer`, which may be
    compiled. `candidate_sums` is what `answer` computes first and no request changes, `answer_sums` the rest of it;
    `explained` is `answer` with the weights that experts were mixed by, of `unit_names` and `expert_names`."""

    unit_names: list[list[str]]
    expert_names: list[list[str]]

    def __init__(self, schema: FeedSchema, fitted: FittedFeatures, network: Network, stacked: StackedTables) -> None:
        super().__init__()
        whose = owners(schema, for_each_task=network.has_own_embeddings)
        request = [BlockRows(schema, "request", stacked, owner) for owner in whose]
        candidate = [BlockRows(schema, "candidate", stacked, owner) for owner in whose]
        frozen = network.frozen(len(schema.tasks))
        names = mixed_names(network.config, frozen, [task.name for task in schema.tasks])
        self.unit_names = [units for units, _ in names]
        self.expert_names = [experts for _, experts in names]
        self.request = nn.ModuleList(request)
        self.candidate = nn.ModuleList(candidate)
        self.sums = RequestSums(frozen, torch.tensor(request[0].columns, dtype=torch.int64))
        columns = torch.tensor(candidate[0].columns, dtype=torch.int64) + row_width(schema, "request")
        self.answer = CandidateAnswers(ScoringNetwork(frozen, network.tower_layers(), columns), Answers(schema, fitted))

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
        sums_1F = self.request_sums(request_ids_1K, request_values_V, request_lengths_L1, request_numbers_1D)
        answers_NT: Tensor = self.answer(self.candidate_rows(ids_NK, values_V, lengths_LN, numbers_ND), sums_1F)
        return answers_NT

    @torch.jit.export
    def request_sums(self, ids_1K: Tensor, values_V: Tensor, lengths_L1: Tensor, numbers_1D: Tensor) -> Tensor:
        """sums_1F: what user and context add to every Linear that reads the raw row, once for all candidates."""
        rows: list[Tensor] = []
        for block in self.request:
            rows.append(block(ids_1K, values_V, lengths_L1, numbers_1D))  # noqa: PERF401 - TorchScript reads it
        sums_1F: Tensor = self.sums(rows)
        return sums_1F

    @torch.jit.export
    def candidate_rows(self, ids_NK: Tensor, values_V: Tensor, lengths_LN: Tensor, numbers_ND: Tensor) -> Tensor:
        """rows_ND: the candidates' columns of the dense row."""
        rows: list[Tensor] = []
        for block in self.candidate:
            rows.append(block(ids_NK, values_V, lengths_LN, numbers_ND))  # noqa: PERF401
        return side_by_side(rows)

    @torch.jit.export
    def candidate_sums(self, rows_ND: Tensor) -> Tensor:
        """sums_NF: what the candidates add to every Linear that reads the raw row, biases left to the request."""
        sums_NF: Tensor = self.answer.network.candidate_sums(rows_ND)
        return sums_NF

    @torch.jit.export
    def answer_sums(self, sums_NF: Tensor, sums_1F: Tensor) -> Tensor:
        """answers_NT of the candidates' sums, of any floating type, and the request's."""
        answers_NT: Tensor = self.answer.answers(self.answer.network.from_sums(sums_NF, sums_1F))
        return answers_NT

    @torch.jit.export
    def explained(self, rows_ND: Tensor, sums_1F: Tensor) -> tuple[Tensor, list[Tensor]]:
        """answers_NT, and by level weights_NGE: with which weight each expert was mixed into each unit."""
        logits_NT, weights = self.answer.network.with_expert_weights(rows_ND, sums_1F)
        return self.answer.answers(logits_NT), weights


class CandidateAnswers(nn.Module):
    """rows_ND, sums_1F -> answers_NT: all that is neither a look-up nor the request's alone, and what is compiled."""

    def __init__(self, network: ScoringNetwork, answers: Answers) -> None:
        super().__init__()
        self.network = network
        self.answers = answers

    def forward(self, rows_ND: Tensor, sums_1F: Tensor) -> Tensor:
        """answers_NT."""
        answers_NT: Tensor = self.answers(self.network(rows_ND, sums_1F))
        return answers_NT


class SumsAnswers(nn.Module):
    """sums_NF, sums_1F -> answers_NT: what is left of `CandidateAnswers` where a catalogue has the candidates' sums."""

    def __init__(self, whole: CandidateAnswers) -> None:
        super().__init__()
        self.network = whole.network
        self.answers = whole.answers

    def forward(self, sums_NF: Tensor, sums_1F: Tensor) -> Tensor:
        """answers_NT."""
        answers_NT: Tensor = self.answers(self.network.from_sums(sums_NF, sums_1F))
        return answers_NT


def to_torchscript(module: nn.Module) -> torch.jit.ScriptModule:
    """The scripted module."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*")  # deprecated without a successor (docs/decisions)
        scripted: torch.jit.ScriptModule = torch.jit.script(module)
    return scripted


def write_torchscript(module: torch.jit.ScriptModule, path: Path) -> None:
    """Writes a scripted module without its tables (model/tables.py). Raises OSError where the disk is full: torch's
    own writer to a path would end the whole process there, so the file is made in memory first."""
    content = io.BytesIO()
    with warnings.catch_warnings(), without_tables(module):
        warnings.filterwarnings("ignore", message=".*torch.jit.*")  # deprecated without a successor (docs/decisions)
        torch.jit.save(module, content)
    path.write_bytes(content.getbuffer())
