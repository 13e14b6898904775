"""Tables with `slots`: ids take rows as they appear in training, and lose them to others that are worth more.

In: the ids of each step's batch. Out: the ranker's id maps (model/embeddings/id_map.py), moved every `interval` steps.
Which ids have a table's slots is decided by TorchRec's managed collision (MCHManagedCollisionModule with its eviction
policies). Its own way into a network is not taken, for TorchScript refuses it, while a map at the end of training is a
vocabulary, which every artifact can have (`with_vocabularies`).

An id that is given a row had been answered by the OOV row, so its row begins as a copy of that one, and its optimizer
without a memory. Moves come after a step, so that a step has one map. Early on they come after steps 1, 2, 4, 8, ...
Every process has the same map: it counts the ids of all of them.

Shapes: R rows, H ids that have a row, V words, D width of a table.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model.embeddings.embeddings import Embeddings, torchrec_fault
from model.embeddings.id_map import IdMap
from model.features.id_lookup import NO_WORD, OOV_ROW
from model.ranker import Ranker
from training.config import SlotsConfig
from training.data.rows import Batch
from training.distributed.ranks import Ranks
from training.distributed.sharding import local_parts, local_rows
from training.run.run import Run
from training.step.optimizers import Optimizers

_WORDS, _ROWS, _TURNS = "_mch_sorted_raw_ids", "_mch_remapped_ids_mapping", "_current_iter_tensor"
_MERIT = "_mch_"  # how TorchRec names what a policy keeps of each slot


class ManagedIds:
    """Moves the id maps of a ranker in training."""

    def __init__(self, embeddings: Embeddings, config: SlotsConfig, ranks: Ranks) -> None:
        """Raise ValueError where there are tables with slots and TorchRec is not."""
        self._embeddings = embeddings
        self._maps = embeddings.id_maps.maps
        self._config = config
        self._ranks = ranks
        self._seen: dict[str, list[Tensor]] = {name: [] for name in self._maps}
        if self._maps and torchrec_fault is not None:
            raise ValueError(
                f"table '{next(iter(self._maps))}': its slots are managed by TorchRec, which does not import here "
                f"({torchrec_fault}); use buckets, or a fitted vocabulary"
            )

    def after_step(self, step: int, batch: Batch, optimizers: Optimizers) -> None:
        """Count the ids of the batch of step `step` (0-based), and move rows where an interval has ended."""
        if not self._maps:
            return
        for name, words_V in self._embeddings.id_maps.words(batch.request, batch.candidate):
            self._seen[name].append(words_V)
        done, interval = step + 1, self._config.interval
        if done % interval == 0 or (done < interval and done & (done - 1) == 0):
            for name, id_map in self._maps.items():
                words_V = self._take_seen(name)
                if len(words_V):
                    rows_R = assign_rows_by_policy(id_map, words_V, self._config)
                    self._copy_oov_row(name, rows_R, optimizers)

    def state_dict(self) -> dict[str, Any]:
        """The maps and what was counted since their last move. All processes call it."""
        found = {}
        for name, id_map in self._maps.items():
            words, counts = torch.unique(self._take_seen(name), return_counts=True)
            # Process 0 goes on with all of it, as does the one that resumes.
            self._seen[name] = [words.repeat_interleave(counts)] if self._ranks.is_first else []
            found[name] = {**id_map.state_dict(), "seen": words, "counts": counts}
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state()`."""
        for name, id_map in self._maps.items():
            id_map.load_state_dict(state[name])
            words_V = state[name]["seen"].repeat_interleave(state[name]["counts"])
            self._seen[name] = [words_V.to(id_map.device)] if self._ranks.is_first else []

    def slot_counts(self) -> dict[str, dict[str, int]]:
        """By table its slots and how many are taken, for a run's summary."""
        return {name: {"slots": one.slots, "held": len(one.words_H)} for name, one in self._maps.items()}

    def _take_seen(self, name: str) -> Tensor:
        """The words that all processes have seen since they were last taken, in no order that matters."""
        own, self._seen[name] = self._seen[name], []
        device = self._maps[name].device
        own_V = torch.cat([torch.zeros(0, dtype=torch.int64, device=device), *own])
        if self._ranks.world == 1:
            return own_V
        return torch.cat([part.to(device) for part in self._ranks.gather(own_V.cpu())])

    def _copy_oov_row(self, table: str, rows_R: Tensor, optimizers: Optimizers) -> None:
        for name, weight in self._embeddings.table_weights().items():
            if name.partition("@")[0] != table or not len(rows_R):
                continue
            parts = list(local_parts(weight))
            oov_D = torch.zeros(weight.size()[1], device=self._ranks.device)
            for part, (first_row, first_column) in parts:
                if first_row == OOV_ROW:
                    oov_D[first_column : first_column + part.shape[1]] = part[0]
            if hasattr(weight, "local_shards"):  # one process alone has the row
                self._ranks.sum(oov_D)
            for part, (first_row, first_column) in parts:
                of_part_D = oov_D[first_column : first_column + part.shape[1]]
                part[local_rows(rows_R, part, first_row)] = of_part_D
            optimizers.reset_rows(name, rows_R)


@torch.no_grad()
def assign_rows_by_policy(id_map: IdMap, words_V: Tensor, config: SlotsConfig) -> Tensor:
    """Assign rows to words that were seen, by TorchRec's policy. Returns the rows that have another word than before,
    rows_R."""
    from torchrec.modules.mc_modules import (
        DistanceLFU_EvictionPolicy,
        LFU_EvictionPolicy,
        LRU_EvictionPolicy,
        MCHManagedCollisionModule,
    )
    from torchrec.sparse.jagged_tensor import JaggedTensor

    policies = {"distance_lfu": DistanceLFU_EvictionPolicy, "lfu": LFU_EvictionPolicy, "lru": LRU_EvictionPolicy}
    # One row more than slots: TorchRec keeps its last row for ids that have none, where we have row 0. A module lives
    # for one interval: it would otherwise cut later batches to the size of its first.
    module = MCHManagedCollisionModule(
        zch_size=id_map.slots + 1,
        device=id_map.device,
        eviction_policy=policies[config.policy](),
        eviction_interval=1,
        output_global_offset=1,
    )
    state = module.state_dict()  # the module's own memory
    count = len(id_map.words_H)
    is_free = torch.ones(id_map.slots, dtype=torch.bool, device=id_map.device)
    is_free[id_map.rows_H - 1] = False
    state[_WORDS][:count] = id_map.words_H
    state[_ROWS][: id_map.slots] = torch.cat([id_map.rows_H, is_free.nonzero()[:, 0] + 1])
    state[_TURNS][0] = id_map.turns
    keys = [key for key in state if key.startswith(_MERIT) and key not in (_WORDS, _ROWS)]
    merits = {key.removeprefix(_MERIT): state[key] for key in keys}
    for name, one in merits.items():
        one[:count] = id_map.merits.get(name, one[:count])
    module({"words": JaggedTensor(values=words_V, lengths=torch.ones_like(words_V))})
    rows_R: Tensor | None = module.evict()
    is_held = state[_WORDS] != NO_WORD
    kept = {name: one[is_held] for name, one in merits.items()}
    id_map.assign_rows(state[_WORDS][is_held], state[_ROWS][is_held], kept, id_map.turns + 1)
    assert rows_R is not None, "a turn was due"
    return rows_R


def with_vocabularies(run: Run, ranker: Ranker) -> tuple[Run, Ranker]:
    """A trained run and its ranker with the ids that have slots as vocabularies. They are in ascending order of their
    words, in tables of as many rows. Unchanged where there are no such tables."""
    maps = ranker.embeddings.id_maps.maps
    if not maps:
        return run, ranker
    vocabularies = {name: tuple(id_map.words_H.tolist()) for name, id_map in maps.items()}
    fitted = run.fitted.model_copy(update={"vocabularies": {**run.fitted.vocabularies, **vocabularies}})
    done = Run(run.path, run.config, run.schema, fitted)
    embeddings = done.new_ranker().embeddings
    trained = ranker.embeddings.table_weights()
    for name, weight in embeddings.table_weights().items():
        id_map = maps.get(name.partition("@")[0])
        rows = slice(None) if id_map is None else torch.cat([id_map.rows_H.new_tensor([OOV_ROW]), id_map.rows_H])
        weight.copy_(trained[name][rows])
    return done, Ranker(embeddings, ranker.network).eval()


def id_map_states(ranker: Ranker) -> dict[str, dict[str, Any]]:
    """By table with slots the state of its id map, with rows in the order of `with_vocabularies`."""
    states = {name: id_map.state_dict() for name, id_map in ranker.embeddings.id_maps.maps.items()}
    return {name: {**state, "rows": torch.arange(1, len(state["words"]) + 1)} for name, state in states.items()}
