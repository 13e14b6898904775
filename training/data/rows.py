"""Parquet -> model inputs: reads a folder, splits it by a column, checks it, encodes it by model.features.encoder.

In: any folder of *.parquet files with the schema's columns. Out: per split an Arrow table (`read_splits`), then
`Rows`, tensors that batches are gathered from. A split is kept in memory. Every fault is a ValueError that names the
file, the column and, for a value, the row in that file.

Shapes: B rows, T tasks, L list features, V list values, K single-id features, Q numbers.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from model.features.block import BLOCKS, BlockTensors
from model.features.encoder import FeatureEncoder, FittedFeatures
from model.features.kinds.columns import Column
from model.schema import FeedSchema
from training.columns import floats, plain
from training.config import DataConfig, SplitName
from training.data.arrow import AbsentColumns, LogColumns, labels_of, observed_of
from training.data.bad_rows import BadRows, Mask
from training.data.files import LogFiles
from training.data.found import Found
from training.data.groups import codes_together, refuse_ungroupable, rows_without_group
from training.data.selection import Selector
from training.tasks import learned

__all__ = [
    "Batch",
    "Rows",
    "columns_to_read",
    "fit_features",
    "joined",
    "labels_of",
    "observed_of",
    "read_log",
    "read_splits",
    "scaled_labels",
]

log = logging.getLogger(__name__)


def read_splits(
    config: DataConfig,
    schema: FeedSchema,
    wanted: tuple[SplitName, ...],
    extra: tuple[str, ...] = (),
) -> dict[SplitName, pa.Table]:
    """The rows of each wanted split (`read_log`). Logs what was left out."""
    splits, found = read_log(config, schema, wanted, extra)
    if found.left_out:
        log.warning("%s: %s", config.path, "; ".join(found.left_out_lines()))
    return splits


def read_log(
    config: DataConfig, schema: FeedSchema, wanted: tuple[SplitName, ...], extra: tuple[str, ...] = ()
) -> tuple[dict[SplitName, pa.Table], Found]:
    """The rows of each wanted split, in file and row order, with `extra` columns beside the schema's, and what was
    found of the log.

    Raises ValueError where a split has no row, and for more bad rows than data.max_bad_rows."""
    files = LogFiles(config.path)
    selector = Selector(config.bounds, config.group_by)
    for split in wanted:
        selector.require(split)
    names = columns_to_read(config, schema, extra)
    parts: dict[SplitName, list[pa.Table]] = {split: [] for split in wanted}
    columns = LogColumns(schema, config.weight)
    absent = AbsentColumns(schema, (*other_columns(config), *extra))
    bad_rows = BadRows(config.max_bad_rows)
    counts: Counter[str] = Counter(dict.fromkeys(selector.selections, 0))
    found = Found(files, splits=counts, left_out=bad_rows.skipped, group_by=config.group_by)
    for file in files.files:
        place = files.shown(file)
        if selector.is_outside(file, place):  # of a folder that no split takes: its rows are counted, not read
            found.rows += files.rows(file)
            continue
        table, filled = absent.fill(files.read(file, names, absent.may_lack), files, place)
        found.add_filled(filled, table.num_rows)
        table, _, faults = columns.read(table, place)
        masks = selector.of_rows(table, place)
        is_in_any_B = np.any([mask.to_numpy() for mask in masks.values()], axis=0)
        is_good_B = bad_rows.good_rows(faults, place, is_in_any_B)
        found.rows += table.num_rows
        found.ungrouped += rows_without_group(table.filter(pa.array(is_in_any_B)), config.group_by)
        for split, mask in masks.items():
            is_wanted = _both(mask, is_good_B)
            counts[split] += pc.sum(is_wanted).as_py() or 0
            if split in parts:
                parts[split].append(table.filter(is_wanted))
    for split, tables in parts.items():
        if not tables:
            raise selector.no_row(config.path, split)
    try:
        splits = {split: pa.concat_tables(tables, promote_options="permissive") for split, tables in parts.items()}
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{config.path}: its files hold one column with types that do not mix ({reason})") from None
    for split, table in splits.items():
        if not table.num_rows:
            raise selector.no_row(config.path, split)
    splits = {split: absent.as_typed(table, files) for split, table in splits.items()}
    if config.group_by is not None:
        refuse_ungroupable(plain(splits[wanted[0]].column(config.group_by)).type, config.group_by)
    return splits, found


def columns_to_read(config: DataConfig, schema: FeedSchema, extra: Sequence[str] = ()) -> list[str]:
    """The data columns that training reads."""
    return list(dict.fromkeys([*schema.columns(), *other_columns(config), *extra]))


def other_columns(config: DataConfig) -> list[str]:
    """Columns beside the schema's: those of the splits, of users, of groups and of row weights."""
    return [
        name for name in (config.bounds.column, config.group_by, config.together, config.weight) if name is not None
    ]


def row_weights(config: DataConfig, table: pa.Table) -> NDArray[np.float64] | None:
    """weights_B of a table's rows, by `data.weight`. None where each counts once."""
    return None if config.weight is None else floats(table.column(config.weight))


def _both(mask: pa.ChunkedArray, is_good_B: Mask | None) -> pa.ChunkedArray:
    return mask if is_good_B is None else pc.and_(mask, pa.array(is_good_B))


def fit_features(schema: FeedSchema, table: pa.Table, columns: Mapping[str, Column]) -> FittedFeatures:
    """Fits vocabularies, transforms and label scales on the training split."""
    return FittedFeatures.fit(schema, columns, scaled_labels(schema, table))


def scaled_labels(schema: FeedSchema, table: pa.Table) -> dict[str, NDArray[np.float64]]:
    """Transformed labels of every task that has a scale, of the rows where they count."""
    return {
        task.name: task.transformed(labels_of(task, table)[observed_of(task, table)])
        for task in schema.tasks
        if task.scaling is not None
    }


class Batch(NamedTuple):
    """Inputs, targets_BT on the scale they are learned on, observed_BT (1 where a label counts), row weights if any.

    `groups_B` are codes of groups that are whole in a batch (data.together): equal where rows are of one group.

    `numbers_B` are the rows' numbers in their split, where a reader has such, for what is said to the user."""

    request: BlockTensors
    candidate: BlockTensors
    targets_BT: Tensor
    observed_BT: Tensor
    weights_B: Tensor | None = None
    numbers_B: Tensor | None = None
    groups_B: Tensor | None = None


class Rows:
    """A split as tensors, from which batches are gathered by row number."""

    def __init__(self, rows: Batch) -> None:
        self._request = _Block(rows.request)
        self._candidate = _Block(rows.candidate)
        self.targets_BT = rows.targets_BT
        self.observed_BT = rows.observed_BT
        self.weights_B = rows.weights_B
        self.groups_B = rows.groups_B

    def __len__(self) -> int:
        return len(self.targets_BT)

    @classmethod
    def encode(
        cls,
        schema: FeedSchema,
        encoder: FeatureEncoder,
        table: pa.Table,
        columns: Mapping[str, Column],
        *,
        as_served: bool,
        weight: str | None = None,
        together: str | None = None,
        is_part: bool = False,
    ) -> "Rows":
        """Encode a split's columns (`columns_from_arrow`). `as_served` gives training_only
        features their serving value, `weight` names the column of row weights, `together` that of groups. Raises
        ValueError where all weights are 0, but for a part of a split."""
        rows = table.num_rows
        targets_BT = np.empty((rows, len(schema.tasks)), np.float32)
        observed_BT = np.empty((rows, len(schema.tasks)), np.float32)
        for position, task in enumerate(schema.tasks):
            targets_BT[:, position] = learned(task, encoder.fitted.targets).targets(labels_of(task, table))
            observed_BT[:, position] = observed_of(task, table)
        weights_B = None if weight is None else torch.from_numpy(floats(table.column(weight)).astype(np.float32))
        if weights_B is not None and not is_part and not weights_B.any():
            raise ValueError(f"column '{weight}' (row weights, data.weight): all {rows} weights are 0")
        request, candidate = (
            BlockTensors(*map(torch.from_numpy, encoder.encode(block, columns, rows, as_served=as_served).block))
            for block in BLOCKS
        )
        labels = torch.from_numpy(targets_BT), torch.from_numpy(observed_BT)
        groups_B = None if together is None else torch.from_numpy(codes_together(table, together))
        return cls(Batch(request, candidate, *labels, weights_B, groups_B=groups_B))

    def _tensors(self) -> tuple[Tensor, ...]:
        others = [tensor for tensor in (self.weights_B, self.groups_B) if tensor is not None]
        return (*self._request.tensors(), *self._candidate.tensors(), self.targets_BT, self.observed_BT, *others)

    @property
    def num_bytes(self) -> int:
        """The memory that the rows take."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def fingerprint(self) -> str:
        """A hash over every row and label, in order: equal for the same split, encoded alike."""
        digest = xxhash.xxh3_128()
        for tensor in self._tensors():
            digest.update(f"{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def take_batch(self, rows_B: Tensor) -> Batch:
        """The batch of the given row numbers."""
        return Batch(
            self._request.take_rows(rows_B),
            self._candidate.take_rows(rows_B),
            self.targets_BT.index_select(0, rows_B),
            self.observed_BT.index_select(0, rows_B),
            None if self.weights_B is None else self.weights_B.index_select(0, rows_B),
            rows_B,
            None if self.groups_B is None else self.groups_B.index_select(0, rows_B),
        )

    def part(self, start: int, stop: int) -> Batch:
        """The rows from `start` to `stop`. Their tensors share memory with these, several lists' values excepted."""
        rows = slice(start, stop)
        return Batch(
            self._request.part(rows),
            self._candidate.part(rows),
            self.targets_BT[rows],
            self.observed_BT[rows],
            None if self.weights_B is None else self.weights_B[rows],
            groups_B=None if self.groups_B is None else self.groups_B[rows],
        )

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All rows in order."""
        for start in range(0, len(self), batch_size):
            yield self.take_batch(torch.arange(start, min(start + batch_size, len(self))))


class _Block:
    """One encoded block with the offsets that a jagged gather needs."""

    def __init__(self, block: BlockTensors) -> None:
        self.ids_BK, self.values_V, self.lengths_LB, self.numbers_BQ = block
        # Where each list begins among the values, list feature by list feature, and at last where all end.
        offsets = torch.cumsum(torch.cat([self.lengths_LB.new_zeros(1), self.lengths_LB.reshape(-1)]), 0)
        self.starts_LB = offsets[:-1].view(self.lengths_LB.shape)
        self._offsets = offsets.numpy()  # which gives single numbers sooner

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.ids_BK, self.values_V, self.lengths_LB, self.numbers_BQ)

    def take_rows(self, rows_B: Tensor) -> BlockTensors:
        lengths_LB = self.lengths_LB.index_select(1, rows_B)
        flat = lengths_LB.reshape(-1)
        # Value v of a gathered list stands at its list's start plus its rank within the list.
        before = torch.cumsum(flat, 0) - flat
        positions = torch.repeat_interleave(self.starts_LB.index_select(1, rows_B).reshape(-1) - before, flat)
        positions += torch.arange(len(positions))
        return BlockTensors(
            self.ids_BK.index_select(0, rows_B),
            self.values_V.index_select(0, positions),
            lengths_LB,
            self.numbers_BQ.index_select(0, rows_B),
        )

    def part(self, rows: slice) -> BlockTensors:
        features, of_feature = self.lengths_LB.shape
        values = [
            self.values_V[self._offsets[first + rows.start] : self._offsets[first + rows.stop]]
            for first in range(0, features * of_feature, of_feature)
        ]
        values_V = torch.cat(values) if len(values) > 1 else values[0] if values else self.values_V
        return BlockTensors(self.ids_BK[rows], values_V, self.lengths_LB[:, rows], self.numbers_BQ[rows])


def joined(parts: Sequence[Batch]) -> Batch:
    """One batch of the rows of all parts, one part after the other, without their row numbers."""
    weights = [part.weights_B for part in parts if part.weights_B is not None]
    groups = [part.groups_B for part in parts if part.groups_B is not None]
    return Batch(
        _joined_blocks([part.request for part in parts]),
        _joined_blocks([part.candidate for part in parts]),
        torch.cat([part.targets_BT for part in parts]),
        torch.cat([part.observed_BT for part in parts]),
        torch.cat(weights) if weights else None,
        groups_B=torch.cat(groups) if groups else None,
    )


def _joined_blocks(blocks: Sequence[BlockTensors]) -> BlockTensors:
    values = [block.list_values_V for block in blocks]
    if len(blocks[0].list_lengths_LB) > 1:
        # A block has the values of its lists feature by feature, so those of a feature are put together first.
        of_features = [torch.split(block.list_values_V, block.list_lengths_LB.sum(1).tolist()) for block in blocks]
        values = [part for feature in zip(*of_features, strict=True) for part in feature]
    return BlockTensors(
        torch.cat([block.ids_BK for block in blocks]),
        torch.cat(values),
        torch.cat([block.list_lengths_LB for block in blocks], dim=1),
        torch.cat([block.numbers_BQ for block in blocks]),
    )
