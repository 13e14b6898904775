"""The reference ranker as it was trained, scripted as one scripts such a model: what other services are given to run.

In: a models folder. Out: an artifact of the reference feed with random weights, and beside it the same weights as a
plain TorchScript file: a look-up for each feature, whole rows of user, context and candidate side by side, a module for
each expert (plain_adatt.py), frozen. It needs torch alone. benchmarks/as_trained_calls.py calls it.

Shapes: B whole rows, K single-id features, V values of a list feature, Q numbers, D columns of a block, T tasks.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.plain_adatt import NAMES, PlainAdaTT
from benchmarks.reference_feed import NETWORK, SCHEMA
from model.export.scoring_module import to_torchscript
from model.features.block import block_inputs
from model.fusion import AdaTTConfig
from model.fusion.levels import widths_by_level
from model.ranker import Network, NetworkConfig, row_width
from model.schema import Block, FeedSchema
from model.tasks import BinaryTask
from tests.artifacts import publish_artifact
from training.start.foreign_weights import NameMap, load_mapped


class PlainBlock(nn.Module):
    """One block's columns of the dense row: an nn.Embedding for each id feature, an nn.EmbeddingBag for each list."""

    def __init__(self, schema: FeedSchema, block: Block, tables: Mapping[str, Tensor]) -> None:
        super().__init__()
        ids, lists, _ = block_inputs(schema, block)
        table_of = {name: table for table in schema.tables for name in table.features}
        self.single = nn.ModuleList(
            [
                nn.Embedding(*table.shape, _weight=table.clone())  # type: ignore[misc]
                for name in ids
                for table in [tables[table_of[name].name]]
            ]
        )
        self.bags = nn.ModuleList(
            [
                nn.EmbeddingBag.from_pretrained(tables[table.name].clone(), mode=feature.pooling)
                for feature in lists
                for table in [table_of[feature.name]]
            ]
        )

    def forward(self, ids_BK: Tensor, values: list[Tensor], offsets: list[Tensor], numbers_BQ: Tensor) -> Tensor:
        """columns_BD. `values` [V] and `offsets` [B] have an entry for each list feature."""
        parts: list[Tensor] = []
        for feature, embedding in enumerate(self.single):
            parts.append(embedding(ids_BK[:, feature]))
        for feature, bag in enumerate(self.bags):
            parts.append(bag(values[feature], offsets[feature]))
        parts.append(numbers_BQ)
        return torch.cat(parts, dim=1)


class AsTrained(nn.Module):
    """Both blocks of B whole rows -> probabilities_BT."""

    def __init__(self, request: PlainBlock, candidate: PlainBlock, network: PlainAdaTT) -> None:
        super().__init__()
        self.request = request
        self.candidate = candidate
        self.network = network

    def forward(
        self,
        request_ids_BK: Tensor,
        request_values: list[Tensor],
        request_offsets: list[Tensor],
        request_numbers_BQ: Tensor,
        ids_BK: Tensor,
        values: list[Tensor],
        offsets: list[Tensor],
        numbers_BQ: Tensor,
    ) -> Tensor:
        """probabilities_BT."""
        request_BD = self.request(request_ids_BK, request_values, request_offsets, request_numbers_BQ)
        candidate_BD = self.candidate(ids_BK, values, offsets, numbers_BQ)
        return torch.sigmoid(self.network(torch.cat([request_BD, candidate_BD], dim=1)))


def publish(models: Path, request: dict[str, Any], as_trained: Path) -> Path:
    """Publish the artifact with `request` as its golden request and write `as_trained`. Returns its folder."""
    twins: list[AsTrained] = []

    def fill(network: Network, tables: dict[str, Tensor]) -> None:
        twins.append(twin(network, tables))

    artifact = publish_artifact(models, "reference", schema=SCHEMA, network=NETWORK, request=request, fill=fill)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*")  # deprecated, as the artifact's own format is
        frozen = torch.jit.freeze(to_torchscript(twins[0].eval()))
        torch.jit.save(frozen, as_trained)
    return artifact


def twin(network: Network, tables: Mapping[str, Tensor]) -> AsTrained:
    """A plain ranker for the reference feed with these tables and random weights, which `network` takes."""
    assert all(isinstance(task, BinaryTask) and task.negative_sampling_rate == 1 for task in SCHEMA.tasks)
    config = NetworkConfig.from_mapping(NETWORK, "network")
    assert isinstance(config.fusion, AdaTTConfig)
    assert isinstance(config.fusion.experts_per_task, int)
    tasks = [task.name for task in SCHEMA.tasks]
    width = row_width(SCHEMA, "request") + row_width(SCHEMA, "candidate")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        plain = PlainAdaTT(
            width,
            widths_by_level(config.fusion.levels),
            len(tasks),
            config.fusion.experts_per_task,
            list(config.tower),
        )
    load_mapped(network.slots(tasks), plain.state_dict(), NameMap(names=NAMES), tasks)
    return AsTrained(PlainBlock(SCHEMA, "request", tables), PlainBlock(SCHEMA, "candidate", tables), plain)
