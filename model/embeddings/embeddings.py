"""Sparse features -> one dense row per impression, by TorchRec's EmbeddingBagCollection (imported here alone).

In: the two `EncodedBlock`s of a batch as tensors. Out: rows_BD = [request embeddings | request numbers | candidate
embeddings | candidate numbers | lists with attention (model/embeddings/histories.py)]. Features keep the schema's order
within a part, single ids before lists, so that the exported module (plain torch) lays its row out the same way. With
tables of each task's own there are T such rows side by side, a task's each, [B, T * D].

A table with two hashes is one table of two halves, read by each of its features twice, under its own name and under
`second_key`. The dense row has their sum. Lists are summed by their tables, and divided by their lengths here where
they are pooled by mean.

Tables with a fused optimizer update inside backward. They may be sharded over processes (`shard`, which training hands
in), or kept in plain torch (`engine="torch"`, model/embeddings/torch_bags.py). First weights are the same in all these
ways: drawn from torch's global generator, table by table.

Shapes: B rows, K single-id features, L list features, V list values, D columns of the dense row, Q numbers, T tasks, F
keys of a collection, W columns of a table.
"""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from model.embeddings.histories import Histories, ListTensors, attended, looked_up
from model.embeddings.id_map import IdMaps
from model.embeddings.table_rows import draw, halves
from model.embeddings.torch_bags import BagTable, TorchBags
from model.features.block import BLOCKS, BlockTensors, block_inputs, row_columns
from model.features.encoder import FeatureEncoder
from model.schema import Attention, FeedSchema, Table

torchrec_fault: str | None = None  # why TorchRec, or fbgemm below it, does not import here
with warnings.catch_warnings():
    # fbgemm announces the renaming of its internal modules at import. A user of this project cannot act on it.
    warnings.simplefilter("ignore")
    try:
        from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
        from torchrec.modules.embedding_modules import EmbeddingBagCollection
        from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
        from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
        from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
    except (ImportError, OSError, RuntimeError, AttributeError) as fault:  # what a build for another torch ends in
        torchrec_fault = str(fault).splitlines()[0]

# torch says at import that a tracing helper will be renamed: not a warning for users of this project.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)

Engine = Literal["torchrec", "torch"]
FusedOptimizer = Literal["rowwise_adagrad", "adagrad", "sgd"]
ADAGRAD_EPSILON = 1e-8


class TableOptimizer(NamedTuple):
    """Optimizer of a table: a fused one, or None for one outside, which sees dense gradients."""

    fused: FusedOptimizer | None
    learning_rate: float


# An unsharded collection on the meta device -> the same tables sharded over processes, with memory, weights undefined.
Shard = Callable[[nn.Module], nn.Module]


def owners(schema: FeedSchema, *, for_each_task: bool) -> list[str | None]:
    """Whose tables there are: everyone's alone (None), or each task's, in the order of their parts of the row."""
    return [task.name for task in schema.tasks] if for_each_task else [None]


def table_name(table: str, owner: str | None) -> str:
    """The name of a table, or of a task's own copy of it."""
    return table if owner is None else f"{table}@{owner}"


def second_key(feature: str) -> str:
    """The name by which a feature reads the second half of its table."""
    return f"{feature}:2"


class _Group(NamedTuple):
    """Tables of one optimizer, and the keys that read them."""

    optimizer: TableOptimizer
    tables: list[Table]
    keys: list[str]


class Embeddings(nn.Module):
    """Collections over all tables of a feed: one for the tables of the common optimizer, one for each other optimizer.

    With `fused` the tables' optimizer runs inside backward (TorchRec's FusedEmbeddingBagCollection: no dense gradient
    of a table ever exists). Without it the tables are ordinary parameters for an optimizer outside. `own` names tables
    with another optimizer. With `for_each_task` every table exists once a task, under the name that `table_name` gives
    it. `shard` shards the tables of fused optimizers. Others have a copy in every process. `id_maps` have the rows of
    ids that come without (tables with slots, in training).
    """

    def __init__(
        self,
        schema: FeedSchema,
        encoder: FeatureEncoder,
        *,
        fused: FusedOptimizer | None = None,
        learning_rate: float = 0.0,
        own: Mapping[str, TableOptimizer] | None = None,
        for_each_task: bool = False,
        engine: Engine = "torchrec",
        device: torch.device | None = None,
        shard: Shard | None = None,
    ) -> None:
        super().__init__()
        assert engine == "torchrec" or shard is None, "plain torch tables are not sharded"
        self.engine = engine
        self._device = torch.device("cpu") if device is None else device
        self._owners = owners(schema, for_each_task=for_each_task)
        self._rows_of_table = encoder.rows_of_table
        self.id_maps = IdMaps(schema, encoder.unplaced, self._device)
        common = TableOptimizer(fused, learning_rate)
        is_fused = {table.name: (own or {}).get(table.name, common).fused is not None for table in schema.tables}
        by_place = [name for name, is_it in is_fused.items() if is_it and engine == "torchrec"]
        self._histories = Histories(schema, by_place)
        # Activation units by list and owner: those of the network behind, of which they are a part (model/ranker.py).
        self.units: dict[tuple[str, str | None], nn.Module] = {}
        self._order: list[list[str]] = []
        # By block the lists that are pooled by mean, and their places among its lists.
        self._mean_lists: list[list[tuple[int, str]]] = []
        for block in BLOCKS:
            inputs = block_inputs(schema, block)
            self._order.append([*inputs.ids, *inputs.pooled_lists])
            means = [(place, one.name) for place, one in enumerate(inputs.lists) if one.pooling == "mean"]
            self._mean_lists.append(means)
        # Columns of the dense row, of all tasks' parts where they have such.
        self.width = sum(width for _, width in row_columns(schema)) * len(self._owners)
        # Every feature that is pooled, and behind them the places of lists that are read place by place.
        self._keys = [name for names in self._order for name in names]
        self._table_of = {name: table.name for table in schema.tables for name in table.features}
        for name, keys in self._histories.place_keys.items():
            self._keys += keys
            self._table_of |= dict.fromkeys(keys, self._table_of[name])
        # Rows of each half, by feature whose table has two.
        halves_of = {table.name: rows for table in schema.tables if (rows := table.half_rows)}
        self._half_rows = {name: halves_of[table] for name, table in self._table_of.items() if table in halves_of}
        self._table_of |= {second_key(name): self._table_of[name] for name in self._half_rows}
        # What reads tables: every feature, and behind all of them second halves.
        self._reads = [*self._keys, *(second_key(name) for name in self._keys if name in self._half_rows)]
        self._groups = self._grouped(schema, common, dict(own or {}))
        made = [self._build(group, shard) for group in self._groups]
        self.collection: nn.Module | None = made[0] if made else None
        self.others = nn.ModuleList(made[1:])

    def _grouped(self, schema: FeedSchema, common: TableOptimizer, own: Mapping[str, TableOptimizer]) -> list[_Group]:
        groups: dict[TableOptimizer, list[Table]] = {}
        for table in sorted(schema.tables, key=lambda table: own.get(table.name, common) != common):
            groups.setdefault(own.get(table.name, common), []).append(table)
        return [
            _Group(optimizer, tables, [key for key in self._reads if self._table_of[key] in {t.name for t in tables}])
            for optimizer, tables in groups.items()
        ]

    def _keys_of(self, table: Table) -> list[str]:
        keys = [name for name in table.features if name in self._keys] + self._histories.keys_of(table.name)
        return [*keys, *(second_key(name) for name in keys if table.half_rows)]

    def _build(self, group: _Group, shard: Shard | None) -> nn.Module:
        fused, rate = group.optimizer
        # The order in which first weights are drawn: published results are those of these seeds.
        averaged = {self._table_of[name] for lists in self._mean_lists for _, name in lists}
        tables = sorted(group.tables, key=lambda table: table.name not in averaged)
        ordered = [(table, owner) for table in tables for owner in self._owners]
        if self.engine == "torch":
            bags = [
                BagTable(
                    table_name(table.name, owner),
                    self._rows_of_table[table.name],
                    table.dim,
                    {key: self._key(key, owner) for key in self._keys_of(table)},
                )
                for table, owner in ordered
            ]
            return TorchBags(bags, self._device, sparse=fused is not None)
        configs = [
            EmbeddingBagConfig(
                name=table_name(table.name, owner),
                embedding_dim=table.dim,
                num_embeddings=self._rows_of_table[table.name],
                feature_names=self._keys_of(table),
                pooling=PoolingType.SUM,
            )
            for table, owner in ordered
        ]
        if fused is None:
            # Drawn on the CPU for tables of any device: the same numbers on every device.
            return cast(nn.Module, EmbeddingBagCollection(tables=configs, device=torch.device("cpu"))).to(self._device)
        settings = {"lr": rate} if fused == "sgd" else {"lr": rate, "eps": ADAGRAD_EPSILON}
        # The types by which TorchRec distinguishes fbgemm's in-backward optimizers (its own SGD and Adagrad it does
        # not).
        kinds = {"rowwise_adagrad": RowWiseAdagrad, "adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}
        if shard is None and self._device.type == "cpu":
            return cast(
                nn.Module,
                FusedEmbeddingBagCollection(
                    tables=configs,
                    optimizer_type=kinds[fused],
                    optimizer_kwargs=settings,
                    device=self._device,
                ),
            )
        assert shard is not None, "on a GPU a fused collection is always built by `shard`, for one process too"
        meta = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
        apply_optimizer_in_backward(kinds[fused], meta.parameters(), settings)
        before = torch.get_rng_state()
        sharded = shard(meta)
        torch.set_rng_state(before)
        weights = _by_table(sharded.state_dict())
        for config in configs:
            draw(weights[config.name], config.num_embeddings, config.embedding_dim)
        return sharded

    def forward(self, request: BlockTensors, candidate: BlockTensors, jagged: Sequence[Any] | None = None) -> Tensor:
        """rows_BD of a batch whose blocks both have B rows. `jagged` is the batch's own where it is made already."""
        request, candidate = self.id_maps.place(request, candidate)
        numbers = (request.numbers_BQ, candidate.numbers_BQ)
        pooled = self._pooled(request, candidate, jagged)
        divisors = self._divisors(request, candidate)
        _, histories = self._histories.split(request)
        parts: list[Tensor] = []
        for owner in self._owners:
            for names, numbers_BQ in zip(self._order, numbers, strict=True):
                # By key, in our own order: a KeyedTensor's order is the tables', and changes when they are sharded.
                parts += [self._columns(pooled, name, owner, divisors.get(name)) for name in names]
                parts.append(numbers_BQ)
            parts += [self._attended(pooled, one, histories[one.name], owner) for one in self._histories.attentions]
        return torch.cat(parts, dim=1)

    def _pooled(
        self, request: BlockTensors, candidate: BlockTensors, jagged: Sequence[Any] | None
    ) -> dict[str, Tensor]:
        """Every feature's pooled rows, by TorchRec's name for it."""
        pooled: dict[str, Tensor] = {}
        if self.engine == "torch":
            values_V, lengths = self._values(request, candidate)
            for bags in self.collections():
                pooled |= bags(self._reads, values_V, lengths.view(len(self._reads), -1))
            return pooled
        if jagged is None:
            jagged = self.jagged(request, candidate)
        for group, collection, own in zip(self._groups, self.collections(), jagged, strict=True):
            pooled |= (
                self._looked_up(group, collection, request, candidate) if own is None else collection(own).to_dict()
            )
        return pooled

    def jagged(self, request: BlockTensors, candidate: BlockTensors) -> list[Any]:
        """The KeyedJaggedTensor that each of TorchRec's collections reads of a batch, in the order of `collections`.
        None for a collection that is looked up without one. Every id of the blocks has its row."""
        pooled_lists = len(request.list_lengths_LB) + len(candidate.list_lengths_LB) - len(self._histories)
        has_lists = pooled_lists > 0
        is_looked_up = [not has_lists and group.optimizer.fused is None for group in self._groups]
        if all(is_looked_up):
            return [None] * len(self._groups)
        values_V, lengths = self._values(request, candidate)
        whole = KeyedJaggedTensor(keys=self._reads, values=values_V, lengths=lengths)
        if len(self._groups) == 1:
            return [whole]
        return [
            None if by_row else whole.permute([self._reads.index(key) for key in group.keys])
            for group, by_row in zip(self._groups, is_looked_up, strict=True)
        ]

    def _looked_up(
        self, group: _Group, collection: nn.Module, request: BlockTensors, candidate: BlockTensors
    ) -> dict[str, Tensor]:
        # Nothing to pool, and tables that are plain parameters: rows looked up are the same numbers, and forward and
        # backward cost a third of a bag's (benchmarks/network_speed.py).
        bags = cast(nn.ModuleDict, collection.embedding_bags)
        pooled: dict[str, Tensor] = {}
        for owner in self._owners:
            for names, block in zip(self._order, (request, candidate), strict=True):
                for name, ids_B in zip(names, block.ids_BK.unbind(1), strict=True):
                    if name in group.keys:
                        weight = cast(Tensor, bags[table_name(self._table_of[name], owner)].weight)
                        for key, rows_B in self._rows(name, ids_B):
                            pooled[self._key(key, owner)] = weight.index_select(0, rows_B)
        return pooled

    def _rows(self, feature: str, ids: Tensor) -> list[tuple[str, Tensor]]:
        """Rows of its table that a feature's ids are, under each key that it reads the table by."""
        half_rows = self._half_rows.get(feature)
        if half_rows is None:
            return [(feature, ids)]
        first, second = halves(ids, ids.new_tensor(half_rows))
        return [(feature, first), (second_key(feature), second + half_rows)]

    def _columns(
        self, pooled: dict[str, Tensor], feature: str, owner: str | None, divisors_B1: Tensor | None
    ) -> Tensor:
        """A feature's columns of the dense row."""
        columns_BD = pooled[self._key(feature, owner)]
        if feature in self._half_rows:
            columns_BD = columns_BD + pooled[self._key(second_key(feature), owner)]
        return columns_BD if divisors_B1 is None else columns_BD / divisors_B1

    def _attended(
        self, pooled: dict[str, Tensor], attention: Attention, history: ListTensors, owner: str | None
    ) -> Tensor:
        """A list's columns of the dense row, by the candidates."""
        query_BW = self._columns(pooled, attention.query, owner, None)
        if keys := self._histories.place_keys.get(attention.name):
            places = [self._columns(pooled, key, owner, None) for key in keys[: history.longest()]]
            keys_BLW = torch.stack(places, dim=1)
        else:
            rows = [rows_V for _, rows_V in self._rows(attention.name, history.values_V)]
            keys_BLW = history.padded(looked_up(self.collections(), table_name(attention.table, owner), rows))
        return attended(query_BW, keys_BLW, history.lengths_B, self.units.get((attention.name, owner)))

    def _divisors(self, request: BlockTensors, candidate: BlockTensors) -> dict[str, Tensor]:
        """Divisor of the sum of a list where its mean is wanted, [B, 1]. All tables pool by sums: fbgemm's
        means take four times as long on a CPU, and each pooling is a kernel of its own."""
        divisors: dict[str, Tensor] = {}
        for names, block in zip(self._mean_lists, (request, candidate), strict=True):
            for position, name in names:
                divisors[name] = block.list_lengths_LB[position].clamp(min=1).unsqueeze(1)
        return divisors

    def use_units(self, units: nn.ModuleList) -> None:
        """Weigh the lists with `attention: mlp` by these, in the order of `activation_units`."""
        names = [(one.name, owner) for owner in self._owners for one in self._histories.attentions if one.kind == "mlp"]
        self.units = dict(zip(names, units, strict=True))

    def collections(self) -> list[nn.Module]:
        """Modules of the tables, one for each group of one optimizer."""
        return [] if self.collection is None else [self.collection, *self.others]

    def _key(self, feature: str, owner: str | None) -> str:
        # TorchRec's name for a feature that several tables read.
        return feature if len(self._owners) == 1 else f"{feature}@{table_name(self._table_of[feature], owner)}"

    def table_weights(self) -> dict[str, Any]:
        """The weights of every table by name, [rows, dim], detached. A sharded table's are a ShardedTensor."""
        found: dict[str, Any] = {}
        for collection in self.collections():
            found |= {name: value.detach() for name, value in _by_table(collection.state_dict()).items()}
        return found

    def fused_optimizers(self) -> list[tuple[torch.optim.Optimizer, float]]:
        """The optimizers that run inside backward, with their learning rates, which take effect at `step()`."""
        if self.engine == "torch":
            return []
        found = []
        for group, collection in zip(self._groups, self.collections(), strict=True):
            if group.optimizer.fused is not None:
                fused: Any = collection.fused_optimizer
                # A method of FusedEmbeddingBagCollection, a property of a sharded one.
                found.append((fused() if callable(fused) else fused, group.optimizer.learning_rate))
        return found

    def parameters_outside(self) -> list[tuple[TableOptimizer, list[nn.Parameter]]]:
        """The tables that an optimizer outside of backward steps: dense gradients, or (plain torch) sparse ones."""
        return [
            (group.optimizer, list(collection.parameters()))
            for group, collection in zip(self._groups, self.collections(), strict=True)
            if group.optimizer.fused is None or self.engine == "torch"
        ]

    def _values(self, request: BlockTensors, candidate: BlockTensors) -> tuple[Tensor, Tensor]:
        """The rows of tables that are read, and the lengths_B of each key's lists, in the order of `_reads`."""
        request, histories = self._histories.split(request)
        values: list[Tensor] = []
        lengths: list[Tensor] = []
        for block in (request, candidate):
            rows = block.ids_BK.shape[0]
            values += [block.ids_BK.t().reshape(-1), block.list_values_V]
            lengths += [block.ids_BK.new_ones(block.ids_BK.shape[1] * rows), block.list_lengths_LB.reshape(-1)]
        for name, keys in self._histories.place_keys.items():
            ids_V, lengths_LB = histories[name].by_place(len(keys))
            values.append(ids_V)
            lengths.append(lengths_LB.reshape(-1))
        values_V, all_lengths = torch.cat(values), torch.cat(lengths)
        if not self._half_rows:
            return values_V, all_lengths
        lengths_FB = all_lengths.view(len(self._keys), -1)
        read, behind = [], []
        for name, ids_V in zip(self._keys, torch.split(values_V, lengths_FB.sum(dim=1).tolist()), strict=True):
            (_, first_V), *second = self._rows(name, ids_V)
            read.append(first_V)
            behind += [rows_V for _, rows_V in second]
        again = [place for place, name in enumerate(self._keys) if name in self._half_rows]
        return torch.cat([*read, *behind]), torch.cat([lengths_FB, lengths_FB[again]]).reshape(-1)


def _by_table(state: Mapping[str, Any]) -> dict[str, Any]:
    """A collection's state by table."""
    prefix, suffix = "embedding_bags.", ".weight"
    return {key.removeprefix(prefix).removesuffix(suffix): value for key, value in state.items()}
