"""Ids that have rows for a while: the tables with `slots`, while they are trained.

In: encoded blocks in which ids of such tables travel without rows (model/features/id_lookup.py). Out: the same blocks
with rows in their place. An id without a row takes the OOV row. Which id has which row is decided between training's
steps (training/step/slots.py), and is a vocabulary once training has ended.

Shapes: B rows, K single-id features, L list features, V values, H ids that have a row.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from model.features.block import BLOCKS, BlockTensors, block_inputs
from model.features.id_lookup import NO_WORD, OOV_ROW
from model.schema import FeedSchema


class IdMap:
    """The ids of one table that have one of its rows 1 to `slots`.

    `words_H` ascend, `rows_H` has the row of each, `merits` what the policy of evictions keeps of each, and `turns` is
    how often rows were given so far."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self.slots = slots
        self.device = device
        nobody = torch.zeros(0, dtype=torch.int64)
        self.assign_rows(nobody, nobody, {}, 0)

    def assign_rows(self, words_H: Tensor, rows_H: Tensor, merits: Mapping[str, Tensor], turns: int) -> None:
        """Assign the rows to these words."""
        self.words_H, self.rows_H = words_H.to(self.device), rows_H.to(self.device)
        self.merits = {name: one.to(self.device) for name, one in merits.items()}
        self.turns = turns

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned. Raises RuntimeError, as torch does of a state dict, where no map is such."""
        words_H, rows_H, merits, turns = (state[key] for key in ("words", "rows", "merits", "turns"))
        of_each = [words_H, rows_H, *merits.values()]
        if not (
            all(one.dtype == torch.int64 and one.shape == (len(words_H),) for one in of_each)
            and bool((words_H[1:] > words_H[:-1]).all() and (words_H != NO_WORD).all())
            and torch.equal(rows_H.unique(), rows_H.sort().values)
            and bool(((rows_H > OOV_ROW) & (rows_H <= self.slots)).all())
            and isinstance(turns, int)
            and turns >= 0
        ):
            raise RuntimeError(f"ids and rows of a table with {self.slots:,} slots that are not in order")
        self.assign_rows(words_H, rows_H, merits, turns)

    def state_dict(self) -> dict[str, Any]:
        """All there is, for checkpoints."""
        return {"words": self.words_H, "rows": self.rows_H, "merits": dict(self.merits), "turns": self.turns}

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of travelling ids, in their shape."""
        if not len(self.words_H):
            return torch.full_like(ids, OOV_ROW)
        words = ids ^ NO_WORD
        places = torch.searchsorted(self.words_H, words).clamp_(max=len(self.words_H) - 1)
        return torch.where(self.words_H[places] == words, self.rows_H[places], OOV_ROW)


class IdMaps:
    """The maps of a feed's tables `unplaced`, by table, and the places of their ids in the blocks."""

    def __init__(self, schema: FeedSchema, unplaced: Collection[str], device: torch.device) -> None:
        slots = {table.name: table.slots for table in schema.tables if table.name in unplaced}
        self.maps = {name: IdMap(rows, device) for name, rows in slots.items() if rows is not None}
        table_of = {feature: table.name for table in schema.tables for feature in table.features}
        # By block the tables of single ids and of lists, None where ids have their rows.
        self._tables: list[tuple[list[str | None], list[str | None]]] = []
        for block in BLOCKS:
            ids, lists, _ = block_inputs(schema, block)
            names = [[table_of[name] for name in features] for features in (ids, [one.name for one in lists])]
            known = [[name if name in self.maps else None for name in of_kind] for of_kind in names]
            self._tables.append((known[0], known[1]))

    def place(self, request: BlockTensors, candidate: BlockTensors) -> tuple[BlockTensors, BlockTensors]:
        """Two blocks with a row for every id."""
        if not self.maps:
            return request, candidate
        placed = []
        for block, (ids, lists) in zip((request, candidate), self._tables, strict=True):
            single = [self._rows(name, ids_B) for name, ids_B in zip(ids, block.ids_BK.unbind(1), strict=True)]
            values = [self._rows(name, ids_V) for name, ids_V in zip(lists, _lists(block), strict=True)]
            placed.append(
                block._replace(
                    ids_BK=torch.stack(single, 1) if single else block.ids_BK,
                    list_values_V=torch.cat(values) if values else block.list_values_V,
                )
            )
        return placed[0], placed[1]

    def words(self, request: BlockTensors, candidate: BlockTensors) -> Iterator[tuple[str, Tensor]]:
        """The words of both blocks, feature by feature, with their tables. Missing ids are left out."""
        for block, (ids, lists) in zip((request, candidate), self._tables, strict=True):
            for names, values in ((ids, block.ids_BK.unbind(1)), (lists, _lists(block))):
                for name, ids_V in zip(names, values, strict=True):
                    if name is not None:
                        yield name, ids_V[ids_V != OOV_ROW] ^ NO_WORD

    def _rows(self, name: str | None, ids: Tensor) -> Tensor:
        return ids if name is None else self.maps[name].rows(ids)


def _lists(block: BlockTensors) -> tuple[Tensor, ...]:
    """The values of each list feature."""
    return torch.split(block.list_values_V, block.list_lengths_LB.sum(1).tolist()) if len(block.list_lengths_LB) else ()
