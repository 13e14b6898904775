"""The network's part of a warm start: layers by name, columns of the raw row by feature, gates by expert.

In: two networks as `Side`s, and the features that mean the same to both. Out: ours filled from theirs, and what became
of each part of it. Columns of new features start at 0, so that adding one changes no answer until it is trained. Gates
go by the experts that they mix, stitches by tasks, the last layer of a tower by its outputs. What is new there, and a
new task's own parts, keep fresh weights. So do the tower of a task that is given another than before, or
none, and what it receives.

Shapes: D columns of the dense row (of a task's part of it where tasks have tables of their own), G gates, E experts.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from model.features.block import row_columns
from model.fusion.frozen import Gates
from model.fusion.names import mixed_names
from model.fusion.slots import Slots
from model.ranker import Network, NetworkConfig
from model.schema import FeedSchema


class Side:
    """A network by its slots (model/fusion/slots.py), with the meaning of their rows and columns."""

    def __init__(self, network: Network, config: NetworkConfig, schema: FeedSchema) -> None:
        tasks = [task.name for task in schema.tasks]
        self.tasks = tasks
        self.slots = network.slots(tasks)
        self.columns = _columns(schema)
        parts = len(tasks) if config.has_own_embeddings else 1
        width = sum(map(len, self.columns.values())) * parts
        # What reads the raw row changes with its width, and nothing else does.
        with torch.random.fork_rng(devices=[]):
            wide = width + parts
            wider = Network(config, wide, schema.output_counts, schema.given, schema.base_logits).slots(tasks)
        # By slot, its dimensions that go along the raw row. A cross layer reads a row and gives one.
        self.of_row = {
            name: [
                place
                for place, sizes in enumerate(zip(slot.shape, wider[name].shape, strict=True))
                if len({*sizes}) > 1
            ]
            for name, slot in self.slots.items()
        }
        self._experts = _experts_of_gates(network, config, tasks, self.slots)
        last = f"{len(config.tower)}"
        self._outputs = {f"tower.{task.name}.{last}": list(task.outputs) for task in schema.tasks}
        self.given = {task.name: task.given for task in schema.tasks}

    def labels(self, name: str) -> list[list[str]]:
        """By leading dimension of a slot, the names of its entries. None where only their number counts."""
        if name.endswith(".stitch"):
            return [self.tasks, self.tasks]
        layer = name.rpartition(".")[0]
        outputs = self._experts.get(layer) or self._outputs.get(layer)
        return [outputs] if outputs else []


def fill_network(ours: Side, theirs: Side, features: set[str]) -> Iterator[tuple[str, str]]:
    """Fill our slots. `features` keep their columns. Yields each part's name with `taken`, `part`, `fresh` or
    `dropped`."""
    columns = [(ours.columns[name], theirs.columns[name]) for name in ours.columns if name in features]
    states: dict[str, set[str]] = {}
    for name in ours.slots:
        states.setdefault(_part(name), set()).add(_fill_slot(name, ours, theirs, columns))
    for part, found in states.items():
        yield part, found.pop() if len(found) == 1 else "part"
    for part in dict.fromkeys(map(_part, theirs.slots)):
        if part not in states:
            yield part, "dropped"


def _fill_slot(name: str, ours: Side, theirs: Side, columns: list[tuple[range, range]]) -> str:
    slot, source = ours.slots[name], theirs.slots.get(name)
    of_row = ours.of_row[name]
    if source is None or source.dim() != slot.dim() or of_row != theirs.of_row[name]:
        return "fresh"
    words = name.split(".")
    if words[0] in ("tower", "transfer") and ours.given[words[1]] != theirs.given.get(words[1]):
        return "fresh"  # another condition, another probability
    pairs: list[Tensor] = []  # by dimension, our place and theirs of what both have
    labels = list(zip(ours.labels(name), theirs.labels(name), strict=False))
    for dimension, (size, old_size) in enumerate(zip(slot.shape, source.shape, strict=True)):
        if dimension in of_row:
            found = [pair for mine, other in columns for pair in zip(mine, other, strict=True)]
        elif dimension < len(labels):
            mine, other = labels[dimension]
            found = [(place, other.index(label)) for place, label in enumerate(mine) if label in other]
        elif size == old_size:
            found = [(place, place) for place in range(size)]
        else:
            return "fresh"
        pairs.append(torch.tensor(found, dtype=torch.int64).view(-1, 2))
    whole = all(len(found) == size for found, size in zip(pairs, slot.shape, strict=True))
    here = torch.meshgrid(*(found[:, 0] for found in pairs), indexing="ij")
    there = torch.meshgrid(*(found[:, 1] for found in pairs), indexing="ij")
    if of_row:
        slot[pairs[0][:, 0]] = 0.0
    slot[here] = source[there].to(slot)
    return "taken" if whole else "part" if here[0].numel() else "fresh"


def _columns(schema: FeedSchema) -> dict[str, range]:
    """Each feature's columns of the dense row (model/embeddings/embeddings.py)."""
    columns: dict[str, range] = {}
    start = 0
    for name, width in row_columns(schema):
        columns[name] = range(columns[name].start if name in columns else start, start + width)
        start += width
    return columns


def _experts_of_gates(network: Network, config: NetworkConfig, tasks: list[str], slots: Slots) -> dict[str, list[str]]:
    """By gate, the experts of its outputs, in their order."""
    frozen = network.frozen(len(tasks))
    mixed = [level for level in enumerate(frozen.levels) if level[1].num_mixed]
    experts: dict[str, list[str]] = {}
    for (position, level), (_, names) in zip(mixed, mixed_names(config.fusion, frozen, tasks), strict=True):
        if not isinstance(level.mix, Gates):
            continue
        prefix = f"level.{position}.gate."
        gates = [name.removesuffix(".weight") for name in slots if name.startswith(prefix) and name.endswith(".weight")]
        for gate, bias_E in zip(gates, level.mix.bias_GE, strict=True):
            experts[gate] = [names[expert] for expert in torch.isfinite(bias_E).nonzero()[:, 0].tolist()]
    return experts


def _part(name: str) -> str:
    """Part of the network that a slot is in, in words: an expert's or gate's unit, a tower, a layer."""
    words = name.split(".")
    return ".".join(words[: 4 if words[0] == "level" and words[2] != "stitch" else 3 if words[0] == "level" else 2])
