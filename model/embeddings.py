"""Sparse features -> one dense row per impression, by TorchRec's EmbeddingBagCollection (imported here alone).

In: the two `EncodedBlock`s of a batch as tensors. Out: rows_BD = [request embeddings | request numbers | candidate
embeddings | candidate numbers]; features keep the schema's order within a block, single ids before lists, so that the
exported module (plain torch) lays its row out the same way. With tables of each task's own there are T such rows side
by side, a task's each, [B, T * D].

A table with two hashes is one table of two halves, read by each of its features twice, under its own name and under
`second_key`; the dense row has their sum.

Shapes: B rows, K single-id features, L list features, V list values, D columns of the dense row, N numbers, T tasks.
"""

import logging
import warnings
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from model.features import FeatureEncoder
from model.schema import Block, FeedSchema, IdFeature, IdListFeature, NumberFeature

with warnings.catch_warnings():
    # fbgemm announces the renaming of its own internal modules at import; nothing a user of this project can act on.
    warnings.simplefilter("ignore")
    from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
    from torchrec.modules.embedding_modules import EmbeddingBagCollection
    from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

# torch says at import that a tracing helper will be renamed: not a warning for users of this project.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)

FusedOptimizer = Literal["rowwise_adagrad", "adagrad", "sgd"]
# The types by which TorchRec tells fbgemm's in-backward optimizers apart (its own SGD and Adagrad it does not know).
_FUSED = {"rowwise_adagrad": RowWiseAdagrad, "adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}
_BLOCKS: tuple[Block, Block] = ("request", "candidate")


class BlockTensors(NamedTuple):
    """An `EncodedBlock` as tensors: int64 ids and lengths, float32 numbers."""

    ids_BK: Tensor
    list_values_V: Tensor
    list_lengths_LB: Tensor
    numbers_BN: Tensor


def block_features(
    schema: FeedSchema, block: Block
) -> tuple[list[IdFeature], list[IdListFeature], list[NumberFeature]]:
    """The features of a block by kind, in the order of their tensors."""
    features = schema.block(block)
    return (
        [feature for feature in features if isinstance(feature, IdFeature)],
        [feature for feature in features if isinstance(feature, IdListFeature)],
        [feature for feature in features if isinstance(feature, NumberFeature)],
    )


def owners(schema: FeedSchema, *, for_each_task: bool) -> list[str | None]:
    """Whose tables there are: everyone's alone (None), or each task's, in the order of their parts of the row."""
    return [task.name for task in schema.tasks] if for_each_task else [None]


def table_name(table: str, owner: str | None) -> str:
    """The name of a table, or of a task's own copy of it."""
    return table if owner is None else f"{table}@{owner}"


def second_key(feature: str) -> str:
    """The name by which a feature reads the second half of its table."""
    return f"{feature}:2"


def halves(pairs: Tensor, half_rows: Tensor) -> tuple[Tensor, Tensor]:
    """The rows, each within its half, of ids of tables with two hashes (model/lookups.py)."""
    first = torch.div(pairs, half_rows, rounding_mode="floor")
    return first, pairs - first * half_rows


class Embeddings(nn.Module):
    """One EmbeddingBagCollection over all tables of a feed.

    With `fused` the tables' optimizer runs inside backward (TorchRec's FusedEmbeddingBagCollection: no dense gradient
    of a table ever exists); without it the tables are ordinary parameters for an optimizer outside. With
    `for_each_task` every table exists once a task, under the name that `table_name` gives it.
    """

    def __init__(
        self,
        schema: FeedSchema,
        encoder: FeatureEncoder,
        *,
        fused: FusedOptimizer | None = None,
        learning_rate: float = 0.0,
        for_each_task: bool = False,
    ) -> None:
        super().__init__()
        self._owners = owners(schema, for_each_task=for_each_task)
        dims = {name: table.dim for table in schema.tables for name in table.features}
        self._order: list[list[str]] = []
        self.width_of_block: dict[Block, int] = {}
        for block in _BLOCKS:
            ids, lists, numbers = block_features(schema, block)
            names = [*(feature.name for feature in ids), *(feature.name for feature in lists)]
            self._order.append(names)
            self.width_of_block[block] = sum(dims[name] for name in names) + len(numbers)
        self._table_of = {name: table.name for table in schema.tables for name in table.features}
        # Rows of each half, by feature whose table has two.
        self._half_rows = {
            name: rows for table in schema.tables for name in table.features if (rows := table.half_rows)
        }
        self._keys = [name for names in self._order for name in names]
        self._table_of |= {second_key(name): self._table_of[name] for name in self._half_rows}
        self.is_fused = fused is not None
        self.collection: nn.Module | None = None
        if not schema.tables:
            return
        tables = [
            EmbeddingBagConfig(
                name=table_name(table.name, owner),
                embedding_dim=table.dim,
                num_embeddings=encoder.rows_of_table[table.name],
                feature_names=[*table.features, *(second_key(name) for name in table.features if table.half_rows)],
                pooling=PoolingType.MEAN if table.pooling == "mean" else PoolingType.SUM,
            )
            # TorchRec 1.8 computes a fused collection pooling by pooling but names its outputs in table order: names
            # and values belong together only with the tables of one pooling side by side.
            for table in sorted(schema.tables, key=lambda table: table.pooling)
            for owner in self._owners
        ]
        if fused is None:
            self.collection = EmbeddingBagCollection(tables=tables, device=torch.device("cpu"))
        else:
            self.collection = FusedEmbeddingBagCollection(
                tables=tables,
                optimizer_type=_FUSED[fused],
                optimizer_kwargs={"lr": learning_rate} if fused == "sgd" else {"lr": learning_rate, "eps": 1e-8},
                device=torch.device("cpu"),
            )

    @property
    def width(self) -> int:
        """Columns of the dense row, of all tasks' parts where they have such."""
        return sum(self.width_of_block.values()) * len(self._owners)

    def forward(self, request: BlockTensors, candidate: BlockTensors) -> Tensor:
        """rows_BD of a batch whose blocks both have B rows."""
        numbers = (request.numbers_BN, candidate.numbers_BN)
        pooled = self._pooled(request, candidate)
        parts: list[Tensor] = []
        for owner in self._owners:
            for names, numbers_BN in zip(self._order, numbers, strict=True):
                # By key, in our own order: a KeyedTensor's order is the tables', and changes when they are sharded.
                parts += [self._columns(pooled, name, owner) for name in names]
                parts.append(numbers_BN)
        return torch.cat(parts, dim=1)

    def _pooled(self, request: BlockTensors, candidate: BlockTensors) -> dict[str, Tensor]:
        """Every feature's pooled rows, by TorchRec's name for it."""
        if self.collection is None:
            return {}
        has_lists = bool(request.list_lengths_LB.shape[0] or candidate.list_lengths_LB.shape[0])
        if has_lists or not isinstance(self.collection, EmbeddingBagCollection):
            return dict(self.collection(self._jagged(request, candidate)).to_dict())
        # Nothing to pool, and tables that are plain parameters: rows looked up are the same numbers, and forward and
        # backward cost a third of a bag's (benchmarks/network_speed.py).
        pooled: dict[str, Tensor] = {}
        for owner in self._owners:
            for names, block in zip(self._order, (request, candidate), strict=True):
                for name, ids_B in zip(names, block.ids_BK.unbind(1), strict=True):
                    bag = self.collection.embedding_bags[table_name(self._table_of[name], owner)]
                    for key, rows_B in self._rows(name, ids_B):
                        pooled[self._key(key, owner)] = bag.weight.index_select(0, rows_B)
        return pooled

    def _rows(self, feature: str, ids: Tensor) -> list[tuple[str, Tensor]]:
        """Which rows of its table a feature's ids are, under each key that it reads the table by."""
        half_rows = self._half_rows.get(feature)
        if half_rows is None:
            return [(feature, ids)]
        first, second = halves(ids, ids.new_tensor(half_rows))
        return [(feature, first), (second_key(feature), second + half_rows)]

    def _columns(self, pooled: dict[str, Tensor], feature: str, owner: str | None) -> Tensor:
        """A feature's columns of the dense row."""
        columns_BD = pooled[self._key(feature, owner)]
        return columns_BD + pooled[self._key(second_key(feature), owner)] if feature in self._half_rows else columns_BD

    def _key(self, feature: str, owner: str | None) -> str:
        # TorchRec's name for a feature that several tables read.
        return feature if len(self._owners) == 1 else f"{feature}@{table_name(self._table_of[feature], owner)}"

    def table_weights(self) -> dict[str, Tensor]:
        """The weights of every table by name, [rows, dim], detached."""
        if self.collection is None:
            return {}
        prefix, suffix = "embedding_bags.", ".weight"
        state = self.collection.state_dict()
        return {key.removeprefix(prefix).removesuffix(suffix): value.detach() for key, value in state.items()}

    def fused_optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer that runs inside backward: its state is saved, its learning rate takes effect at `step()`."""
        if not self.is_fused or self.collection is None:
            return None
        return cast(torch.optim.Optimizer, cast(FusedEmbeddingBagCollection, self.collection).fused_optimizer())

    def _jagged(self, request: BlockTensors, candidate: BlockTensors) -> KeyedJaggedTensor:
        values: list[Tensor] = []
        lengths: list[Tensor] = []
        for block in (request, candidate):
            rows = block.ids_BK.shape[0]
            values += [block.ids_BK.t().reshape(-1), block.list_values_V]
            lengths += [block.ids_BK.new_ones(block.ids_BK.shape[1] * rows), block.list_lengths_LB.reshape(-1)]
        whole = KeyedJaggedTensor(keys=self._keys, values=torch.cat(values), lengths=torch.cat(lengths))
        return self._with_halves(whole) if self._half_rows else whole

    def _with_halves(self, pairs: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """The same with the rows of both halves in place of ids that are pairs, the second's behind all others."""
        values: list[Tensor] = []
        behind: list[Tensor] = []
        lengths_FB = pairs.lengths().view(len(self._keys), -1)
        for name, ids_V in zip(self._keys, pairs.values().split(pairs.length_per_key()), strict=True):
            (_, first_V), *second = self._rows(name, ids_V)
            values.append(first_V)
            behind += [rows_V for _, rows_V in second]
        again = [place for place, name in enumerate(self._keys) if name in self._half_rows]
        return KeyedJaggedTensor(
            keys=[*self._keys, *(second_key(self._keys[place]) for place in again)],
            values=torch.cat([*values, *behind]),
            lengths=torch.cat([lengths_FB, lengths_FB[again]]).reshape(-1),
        )
