"""Starts a ranker from a parent's weights, with features and tasks added or removed: `init_from: models/NAME/VERSION`.

In: a ranker with fresh weights, its schema and what was fitted for it, a `Parent`. Out: the ranker, filled where names
and meanings agree, and a `Taken` for each part, so that nothing is taken or left in silence.

Tables go by name. A row is taken where its id means the same: the same hashing and buckets, or the same entry of a
vocabulary. Features whose values mean the same keep their columns of the network (training/start/warm_network.py).

Shapes: R rows of a table, W its width, P pairs of rows, H ids that have a slot.
"""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table as ShownTable
from torch import Tensor

from model.embeddings.embeddings import owners, table_name
from model.embeddings.id_map import IdMaps
from model.features.block import inputs_of
from model.features.encoder import FittedFeatures
from model.features.kinds.inputs import Inputs
from model.ranker import NetworkConfig, Ranker
from model.schema import FeedSchema, Table
from training.distributed.sharding import local_parts
from training.start.parent import Parent
from training.start.warm_network import Side, fill_network
from training.wording import counted


@dataclass(frozen=True, slots=True)
class Taken:
    """Outcome for a table, a feature's columns or a part of the network: `taken`, `part`, `fresh` or `dropped`."""

    kind: str
    name: str
    state: str
    why: str = ""


def warm_start(
    ranker: Ranker, schema: FeedSchema, fitted: FittedFeatures, config: NetworkConfig, parent: Parent
) -> list[Taken]:
    """Fill `ranker` from the parent and says what was taken. Raises ValueError where nothing of it fits."""
    own = config.has_own_embeddings
    held = _inherit(ranker.embeddings.id_maps, schema, parent)
    fitted = fitted.model_copy(update={"vocabularies": {**fitted.vocabularies, **held}})
    tables = _Tables(schema, fitted, parent)
    weights = ranker.embeddings.table_weights()
    taken = [
        tables.fill(table, name, weights[name])
        for owner in owners(schema, for_each_task=own)
        for table in schema.tables
        for name in [table_name(table.name, owner)]
    ]
    names = {one.name for one in taken}
    taken += [Taken("table", name, "dropped", "no feature reads it") for name in parent.tables if name not in names]
    features = _features(schema, parent, {one.name for one in taken if one.state in ("taken", "part")}, own=own)
    taken += features
    known = {one.name for one in features if one.state == "taken"}
    ours = Side(ranker.network, config, schema)
    theirs = Side(parent.network, parent.config, parent.schema)
    taken += [Taken("network", *one) for one in fill_network(ours, theirs, known)]
    if len(ranker.network.activation_units):
        taken.append(_units(ranker, schema, parent))
    if not any(one.state in ("taken", "part") for one in taken):
        raise ValueError(f"init_from: {parent.path}: no table or layer of it has a name and form that this run has")
    return taken


def _units(ranker: Ranker, schema: FeedSchema, parent: Parent) -> Taken:
    """Fill the activation units of lists, all or none."""
    ours, theirs = ranker.network.activation_units, parent.network.activation_units
    tasks = [[task.name for task in one.tasks] for one in (schema, parent.schema)]
    has_others = ranker.network.has_own_embeddings and tasks[0] != tasks[1]
    if _compared(schema) != _compared(parent.schema) or len(ours) != len(theirs) or has_others:
        return Taken("network", "activation units of lists", "fresh", "the lists or their queries differ")
    ours.load_state_dict(theirs.state_dict())
    return Taken("network", "activation units of lists", "taken")


def _compared(schema: FeedSchema) -> dict[str, tuple[str, str]]:
    """Lists with attention: the id that each is compared with, and how."""
    return {one.name: (one.query, one.kind) for one in schema.attentions}


def print_taken(taken: list[Taken], parent: Parent) -> None:
    """Print how much was taken whole, and a table of what was not: taken in part, fresh or dropped."""
    console = Console(stderr=True, highlight=False)
    console.width = max(console.width, 110)
    whole = Counter(one.kind for one in taken if one.state == "taken")
    nouns = {"table": "table", "feature": "feature", "network": "part"}
    shown = ", ".join(
        counted(whole[kind], noun) + (" of the network" if kind == "network" else "") for kind, noun in nouns.items()
    )
    console.print(f"started from {parent.path}: {shown} taken whole", soft_wrap=True, markup=False)
    others = [one for one in taken if one.state != "taken"]
    if not others:
        return
    table = ShownTable("", "name", "", "", title="not taken, or in part", title_justify="left")
    for one in others:
        table.add_row(*map(escape, asdict(one).values()))
    console.print(table)


def _inherit(id_maps: IdMaps, schema: FeedSchema, parent: Parent) -> dict[str, tuple[int, ...]]:
    """Assign slots to the parent's ids, the best where slots are fewer. Returns by table the words of rows 1, 2 ..."""
    before = {table.name: table for table in parent.schema.tables}
    for table in schema.tables:
        id_map, old = id_maps.maps.get(table.name), parent.id_maps.get(table.name)
        if id_map is not None and old is not None and not _differences(table, before[table.name]):
            words_H = old["words"]
            kept_H = torch.arange(len(words_H))
            if len(words_H) > id_map.slots:
                merit_H = next(iter(old["merits"].values()))  # counts, or when seen last
                kept_H = merit_H.argsort(descending=True, stable=True)[: id_map.slots].sort().values
            merits = {name: merit_H[kept_H] for name, merit_H in old["merits"].items()}
            id_map.assign_rows(words_H[kept_H], torch.arange(1, len(kept_H) + 1), merits, old["turns"])
    return {name: tuple(id_map.words_H.tolist()) for name, id_map in id_maps.maps.items()}


class _Tables:
    """The parent's tables, as the child's rows see them."""

    def __init__(self, schema: FeedSchema, fitted: FittedFeatures, parent: Parent) -> None:
        self._parent = parent
        self._before = {table.name: table for table in parent.schema.tables}
        self._entries = {table.name: _entries(table, fitted) for table in schema.tables}

    def fill(self, table: Table, name: str, weight: Tensor) -> Taken:
        """Fill a table, or this process's shards of it."""
        before = self._before.get(table.name)
        if before is None or name not in self._parent.tables:
            return Taken("table", name, "fresh", "new")
        if different := _differences(table, before):
            return Taken("table", name, "fresh", different)
        source_RW = self._parent.tables[name]
        rows, state, why = self._rows(table, before, len(source_RW))
        for part, (first_row, first_column) in local_parts(weight):
            here = (rows[:, 0] >= first_row) & (rows[:, 0] < first_row + len(part))
            ours, theirs = rows[here].unbind(1)
            part[ours - first_row] = source_RW[theirs, first_column : first_column + part.shape[1]].to(part)
        return Taken("table", name, state, why)

    def _rows(self, table: Table, before: Table, count: int) -> tuple[Tensor, str, str]:
        """Pairs [P, 2] of our row and theirs."""
        entries = self._entries[table.name]
        if entries is None:
            return torch.arange(count).unsqueeze(1).expand(-1, 2), "taken", ""
        old = _entries(before, self._parent.fitted)
        assert old is not None
        row_of = {entry: row for row, entry in enumerate(old, start=1)}
        pairs = [(row, row_of[entry]) for row, entry in enumerate(entries, start=1) if entry in row_of]
        new, dropped = len(entries) - len(pairs), len(old) - len(pairs)
        why = ", ".join(f"{count:,} entries {what}" for count, what in ((new, "new"), (dropped, "dropped")) if count)
        return torch.tensor([(0, 0), *pairs]), "part" if new else "taken", why


def _entries(table: Table, fitted: FittedFeatures) -> tuple[int | str, ...] | None:
    """The entries of a vocabulary, or the words that have slots, whose rows count from 1. None where ids are hashed."""
    if table.vocabulary == "fitted" or table.slots is not None:
        return fitted.vocabularies[table.name]
    return table.vocabulary


def _differences(table: Table, before: Table) -> str:
    """Differences by which rows of two tables of one name mean different things. Empty where there are none."""
    ours, theirs = (_meaning(one) for one in (table, before))
    return "; ".join(f"{key} was {theirs[key]}, is {ours[key]}" for key in ours if ours[key] != theirs[key])


def _meaning(table: Table) -> dict[str, Any]:
    """Settings that decide what a row of a table means. Rows of vocabularies and slots are identified by entry. Which
    features read a table, and how they pool it, changes no row."""
    vocabulary: Literal["fitted"] | None = None if table.vocabulary is None else "fitted"
    fields = asdict(replace(table, vocabulary=vocabulary, slots=None if table.slots is None else 1))
    return {key: value for key, value in fields.items() if key not in ("name", "features", "min_count")}


def _other_inputs(ours: Inputs, theirs: Inputs) -> str:
    """Differences by which the same raw values mean different things to two features. Empty where there are none."""
    if ours.numbers != theirs.numbers:
        return "another transform or value for missing ones"
    poolings = [{one.pooling for one in inputs.lists} for inputs in (ours, theirs)]
    return "" if poolings[0] == poolings[1] else f"pooling was {', '.join(poolings[1])}"


def _features(schema: FeedSchema, parent: Parent, tables: set[str], *, own: bool) -> list[Taken]:
    before = {feature.name: feature for feature in parent.schema.features}
    both = (schema, parent.schema)
    table_of = [{name: table.name for table in one.tables for name in table.features} for one in both]
    compared = [_compared(one) for one in both]
    # Of tasks' own tables each is the same or none is, new tasks apart.
    known = {name.partition("@")[0] for name in tables} if own else tables
    taken: list[Taken] = []
    for feature in schema.features:
        old = before.get(feature.name)
        why = ""
        if old is None:
            why = "new"
        elif old.kind != feature.kind:
            why = f"was of kind {old.kind}"
        elif table_of[0].get(feature.name) != table_of[1].get(feature.name):
            why = f"read table {table_of[1][feature.name]}"
        elif feature.has_ids and table_of[0][feature.name] not in known:
            why = "its table is fresh"
        else:
            why = _other_inputs(inputs_of([feature]), inputs_of([old]))
            if not why and compared[0].get(feature.name) != compared[1].get(feature.name):
                why = "attention was {1}, by {0}".format(*compared[1][feature.name])
        taken.append(Taken("feature", feature.name, "fresh" if why else "taken", why))
    names = {feature.name for feature in schema.features}
    return taken + [Taken("feature", name, "dropped") for name in before if name not in names]
