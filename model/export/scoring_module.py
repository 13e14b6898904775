"""The module that is exported: the ranker's network behind its embeddings, with answers in each task's own unit.

TorchScript scripts it, and a process needs torch alone to run it. model/artifact/module_inputs.py makes its inputs of
encoded blocks: it looks rows up, by `table_starts`, and multiplies the request's once, by the weights of `sums`.

Shapes: N candidates, R requests, O outputs, D columns of the dense row, F outputs over the raw row
(model/export/scoring_network.py).
"""

import copy
import io
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from model.artifact.module_inputs import columns_of
from model.embeddings.embeddings import owners, table_name
from model.export.scoring_network import ScoringNetwork, request_linears
from model.features.encoder import FittedFeatures
from model.fusion.names import mixed_names
from model.ranker import Answers, Network, row_width
from model.schema import FeedSchema


class ScoringModule(nn.Module):
    """The exported module: rows of N candidates and the sums of one request -> answers_NO. The rows have what its lists
    with attention give each candidate.

    `answer` is all of it, and may be compiled. `candidate_sums` is what it computes first and no request changes,
    `answer_sums` the rest of it. `answer_together` is `answer` for several requests. `explained` is `answer` with the
    weights that experts were mixed by, of `unit_names` and `expert_names`. `table_starts` are, for each owner of
    tables, the first stacked row of each table of the schema. `sums` has, for each raw row, what a request's columns
    are multiplied by. `activation_units` are those of lists with `attention: mlp`, where there are any."""

    table_starts: list[list[int]]
    unit_names: list[list[str]]
    expert_names: list[list[str]]

    def __init__(self, schema: FeedSchema, fitted: FittedFeatures, network: Network, starts: Mapping[str, int]) -> None:
        super().__init__()
        whose = owners(schema, for_each_task=network.has_own_embeddings)
        self.table_starts = [[starts[table_name(table.name, owner)] for table in schema.tables] for owner in whose]
        frozen = network.frozen(len(schema.tasks))
        names = mixed_names(network.config, frozen, [task.name for task in schema.tasks])
        self.unit_names = [units for units, _ in names]
        self.expert_names = [experts for _, experts in names]
        self.sums = request_linears(frozen, torch.tensor(columns_of(schema, "request"), dtype=torch.int64))
        before = row_width(schema, "request")
        of_block = torch.tensor(columns_of(schema, "candidate"), dtype=torch.int64) + before
        # Behind those of the candidate stand those of lists with attention.
        columns = torch.cat([of_block, torch.arange(before + len(of_block), row_width(schema))])
        scoring = ScoringNetwork(frozen, network.tower_layers(), network.chains, columns)
        self.answer = CandidateAnswers(scoring, Answers(schema, fitted))
        if len(network.activation_units):
            self.activation_units = copy.deepcopy(network.activation_units).requires_grad_(False)

    def forward(self, rows_ND: Tensor, sums_1F: Tensor) -> Tensor:
        """answers_NO: a probability per binary task, a quantity in the label's unit per regression task."""
        answers_NO: Tensor = self.answer(rows_ND, sums_1F)
        return answers_NO

    @torch.jit.export
    def candidate_sums(self, rows_ND: Tensor) -> Tensor:
        """sums_NF: what the candidates add to every Linear that reads the raw row, biases left to the request. They are
        of no request where the columns of lists with attention are 0."""
        sums_NF: Tensor = self.answer.network.candidate_sums(rows_ND)
        return sums_NF

    @torch.jit.export
    def answer_sums(self, sums_NF: Tensor, sums_1F: Tensor) -> Tensor:
        """answers_NO of the candidates' sums, of any floating type, and the request's."""
        answers_NO: Tensor = self.answer.answers(self.answer.network.from_sums(sums_NF, sums_1F))
        return answers_NO

    @torch.jit.export
    def answer_together(self, rows_ND: Tensor, sums_RF: Tensor, counts: list[int]) -> Tensor:
        """answers_NO of the candidates of R requests, one request's after another's: `counts` of each."""
        answers_NO: Tensor = self.answer.answers(self.answer.network.of_several(rows_ND, sums_RF, counts))
        return answers_NO

    @torch.jit.export
    def explained(self, rows_ND: Tensor, sums_1F: Tensor) -> tuple[Tensor, list[Tensor]]:
        """answers_NO, and by level weights_NGE: with which weight each expert was mixed into each unit."""
        logits_NO, weights = self.answer.network.with_expert_weights(rows_ND, sums_1F)
        return self.answer.answers(logits_NO), weights


class CandidateAnswers(nn.Module):
    """rows_ND, sums_1F -> answers_NO: what is compiled."""

    def __init__(self, network: ScoringNetwork, answers: Answers) -> None:
        super().__init__()
        self.network = network
        self.answers = answers

    def forward(self, rows_ND: Tensor, sums_1F: Tensor) -> Tensor:
        """answers_NO."""
        answers_NO: Tensor = self.answers(self.network(rows_ND, sums_1F))
        return answers_NO


class SumsAnswers(nn.Module):
    """sums_NF, sums_1F -> answers_NO: what is left of `CandidateAnswers` where a catalogue has the candidates' sums."""

    def __init__(self, whole: CandidateAnswers) -> None:
        super().__init__()
        self.network = whole.network
        self.answers = whole.answers

    def forward(self, sums_NF: Tensor, sums_1F: Tensor) -> Tensor:
        """answers_NO."""
        answers_NO: Tensor = self.answers(self.network.from_sums(sums_NF, sums_1F))
        return answers_NO


def to_torchscript(module: nn.Module) -> torch.jit.ScriptModule:
    """The scripted module."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*")  # deprecated without a successor (docs/decisions)
        scripted: torch.jit.ScriptModule = torch.jit.script(module)
    return scripted


def write_torchscript(module: torch.jit.ScriptModule, path: Path) -> None:
    """Write a scripted module. Raises OSError where the disk is full: torch's own writer to a path would end the whole
    process there, so the file is made in memory first."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*")  # deprecated without a successor (docs/decisions)
        torch.jit.save(module, content)
    path.write_bytes(content.getbuffer())
