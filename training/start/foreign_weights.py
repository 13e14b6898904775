"""Weights of another implementation as the start of a training run: `initial_weights: {path: w.pt, names: map.yaml}`.

In: a state dict (a file of torch.save) and a file of names. Out: the network filled, whole or not at all.

    names:     # ours (model/fusion/slots.py): theirs. The first line that fits a slot counts
      level.{level}.expert.{task}.{expert}.{layer}.{part}: levels.{level}.experts.{task#}.{expert}.net.{layer*2}.{part}
      level.{level}.gate.{task}.{part}: levels.{level}.gates.{task#}.{part}
      level.{level}.native.{task}: levels.{level}.native[{task#}]
      tower.{task}.{layer}.{part}: heads.{task}.{layer*2}.{part}
    ignore: [optimizer.*]     # theirs that have no place here

Placeholders: {level} {expert} {layer} {module} are numbers from 0. {task} is the task's name, and {task#}, on the
right, its number. {part} is weight or bias. {table} is a table's name. On the right a number may be shifted: {layer*2},
{level+1}, {layer*2+1}. A name of theirs that ends in [n] is row n of the tensor. Weights are [out, in], as torch's
Linear has them. Embedding tables are filled where a line fits `table.NAME` ([rows, dim]), and otherwise start as usual.
Everything else must be filled.
"""

import fnmatch
import io
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.fusion.slots import Slots
from model.ranker import Ranker
from model.strict_yaml import StrictModel
from model.untrusted_files import read_bytes
from training.config import InitialWeights

_NUMBER = r"\d+"
_PLACEHOLDERS = {"level": _NUMBER, "expert": _NUMBER, "layer": _NUMBER, "module": _NUMBER, "part": "weight|bias"}
_OURS = re.compile(r"\{([^{}]*)\}")
_THEIRS = re.compile(r"\{(?P<name>[a-z]+)(?P<number>#)?(?:\*(?P<times>\d{1,4}))?(?:\+(?P<plus>\d{1,4}))?\}")
_ROW = re.compile(r"(?P<name>.*)\[(?P<row>\d{1,9})\]")


class NameMap(StrictModel):
    """Our names to theirs, by patterns, and patterns (* and ?) of theirs that are left out."""

    names: dict[str, str]
    ignore: tuple[str, ...] = ()


def load_initial_weights(ranker: Ranker, tasks: list[str], config: InitialWeights) -> None:
    """Fill a ranker. Raises ValueError naming the file and the name that does not fit. Nothing is filled then."""
    if len(ranker.network.activation_units):
        raise ValueError("initial_weights: weights of `attention: mlp` have no names to map; use attention: dot")
    state, names = read_state(config.path), NameMap.from_yaml(config.names)
    tables = {f"table.{name}": weight for name, weight in ranker.embeddings.table_weights().items()}
    try:
        load_mapped(ranker.network.slots(tasks), state, names, tasks, optional=tables)
    except ValueError as error:
        raise ValueError(f"{config.path}, by {config.names}: {error}") from None


def read_state(path: Path) -> dict[str, object]:
    """A state dict from a file of torch.save. Runs no code of it. Raises ValueError naming the file."""
    try:
        content = read_bytes(path, None)
    except OSError as error:
        raise ValueError(f"{path}: the weights cannot be read ({error.strerror})") from None
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # a damaged or forged body can make the unpickler stop anywhere
        raise ValueError(
            f"{path}: not a file of tensors by torch.save; save a module's state_dict(), not the module"
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{path}: expected names and tensors, as state_dict() gives them, got {type(state).__name__}")
    return dict(state)


def load_mapped(
    slots: Slots, state: Mapping[str, object], names: NameMap, tasks: list[str], *, optional: Slots | None = None
) -> None:
    """Fill every one of `slots`, and those of `optional` that a line fits, from another implementation's `state`.

    Raises ValueError, and fills nothing, where a slot has no source, a source is absent, taken twice or of another
    shape, or a tensor of theirs is neither taken nor ignored."""
    sources = _sources(slots, optional or {}, names.names, tasks)
    targets = {**(optional or {}), **slots}
    found = {name: _value(name, source, state).to(targets[name].dtype) for name, source in sources.items()}
    _check_use(sources, state, names.ignore)
    for name, value in found.items():
        # A vector may come as one row or one column: sizes of 1 carry nothing.
        if [size for size in value.shape if size > 1] != [size for size in targets[name].shape if size > 1]:
            raise ValueError(
                f"'{name}' has shape {list(targets[name].shape)}, their '{sources[name]}' {list(value.shape)}; "
                "the sizes in network, or the layout ([out, in]), differ"
            )
        if not torch.isfinite(value).all():
            raise ValueError(f"their '{sources[name]}' has values that are not finite")
    for name, value in found.items():
        targets[name].copy_(value.reshape(targets[name].shape))


def _sources(slots: Slots, optional: Slots, names: Mapping[str, str], tasks: list[str]) -> dict[str, str]:
    """The other implementation's name for each of our slots."""
    patterns = {ours: _pattern(ours, tasks) for ours in names}
    fitting: set[str] = set()
    sources: dict[str, str] = {}
    for name in (*slots, *optional):
        for ours, pattern in patterns.items():
            if match := pattern.fullmatch(name):
                sources[name] = _filled(names[ours], match.groupdict(), tasks)
                fitting.add(ours)
                break
    missing = [name for name in slots if name not in sources]
    if missing:
        raise ValueError(f"names: no line fits {_some(missing)}")
    # Another line may be for a larger network. A table that is not filled would go unnoticed.
    idle = [ours for ours in names if ours.startswith("table.") and ours not in fitting]
    if idle:
        raise ValueError(f"names: '{idle[0]}' fits no table; {_listed(optional)}")
    return sources


def _pattern(ours: str, tasks: list[str]) -> re.Pattern[str]:
    kinds = {**_PLACEHOLDERS, "task": "|".join(map(re.escape, tasks)), "table": r"[^.]+"}
    pattern, end = "", 0
    for match in _OURS.finditer(ours):
        key = match[1]
        if key not in kinds:
            raise ValueError(f"names: '{ours}': unknown placeholder {{{key}}}; there are {', '.join(kinds)}")
        if f"(?P<{key}>" in pattern:
            raise ValueError(f"names: '{ours}': {{{key}}} stands there twice")
        pattern += re.escape(ours[end : match.start()]) + f"(?P<{key}>{kinds[key]})"
        end = match.end()
    return re.compile(pattern + re.escape(ours[end:]))


def _filled(theirs: str, values: dict[str, str], tasks: list[str]) -> str:
    """The other implementation's name, with the values of a match in its placeholders."""

    def value(match: re.Match[str]) -> str:
        key = match["name"]
        if key not in values:
            raise ValueError(f"names: '{theirs}': {match[0]} has no value; its line's left side has no {{{key}}}")
        text = values[key]
        if match["number"]:
            if key != "task":
                raise ValueError(f"names: '{theirs}': {match[0]}: only {{task#}} has a number")
            text = str(tasks.index(text))
        if match["times"] is None and match["plus"] is None:
            return text
        if not text.isdigit():
            raise ValueError(f"names: '{theirs}': {match[0]}: '{text}' is no number; write {{task#}} for a task's")
        return str(int(text) * int(match["times"] or 1) + int(match["plus"] or 0))

    filled = _THEIRS.sub(value, theirs)
    if "{" in filled or "}" in filled:
        raise ValueError(f"names: '{theirs}': a placeholder is written {{layer}}, {{task#}}, {{layer*2+1}}")
    return filled


def _split(source: str) -> tuple[str, int | None]:
    """The tensor's name, and the row of it where the source is one."""
    match = _ROW.fullmatch(source)
    return (source, None) if match is None else (match["name"], int(match["row"]))


def _value(name: str, source: str, state: Mapping[str, object]) -> Tensor:
    theirs, row = _split(source)
    value = state.get(theirs)
    if not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_floating_point():
        what = "is not there" if theirs not in state else "is no tensor of floating-point numbers"
        raise ValueError(f"'{name}' comes from their '{theirs}', which {what}; {_listed(state)}")
    if row is None:
        return value
    if value.dim() == 0 or row >= len(value):
        raise ValueError(f"'{name}' comes from their '{source}', but that tensor has shape {list(value.shape)}")
    return value[row]


def _check_use(sources: Mapping[str, str], state: Mapping[str, object], ignore: tuple[str, ...]) -> None:
    taken: dict[str, str] = {}
    rows: dict[str, set[int | None]] = {}
    for name, source in sources.items():
        if source in taken:
            raise ValueError(f"their '{source}' would fill both '{taken[source]}' and '{name}'; map each by itself")
        taken[source] = name
        theirs, row = _split(source)
        rows.setdefault(theirs, set()).add(row)
    for theirs, some in rows.items():
        value = state[theirs]
        assert isinstance(value, Tensor)
        if None not in some and len(some) < len(value):
            raise ValueError(f"their '{theirs}' has {len(value)} rows, of which {len(some)} are taken")
    unused = [name for name in state if name not in rows and not any(fnmatch.fnmatchcase(name, p) for p in ignore)]
    if unused:
        raise ValueError(f"nothing here takes their {_some(unused)}; map them, or list them under ignore")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more


def _listed(names: Mapping[str, object]) -> str:
    return f"there are {_some(list(names))}" if names else "there is nothing"
