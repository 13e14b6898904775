"""YAML files with a contract: every key is known, every fault names its place.

In: a YAML file or mapping, and the pydantic model it must obey. Out: the validated model. Raises ValueError (one
message that lists every fault as `place: rule, value, what to do`), never a traceback of the parser.
"""

import difflib
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from model.untrusted_files import DOCUMENT_BYTES, read_bytes

# Deeper than any configuration, and far from the end of the stack of what walks the result.
_MAX_DEPTH = 100
# Characters of a wrong name that are compared: the time grows with their square.
_COMPARED = 64
# Entries that aliases and merge keys may add to those that are written.
_MAX_EXPANDED = 100_000


# Names become keys in JSON and YAML, metric labels and tensor names ("<feature>.values"): no dots, blanks or quotes.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")]


class StrictModel(BaseModel):
    """Base of every configuration model: frozen, and unknown keys are refused with the nearest valid one."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        valid = [field.alias or name for name, field in cls.model_fields.items()]
        unknown = [str(key) for key in data if key not in valid]
        if unknown:
            raise ValueError("; ".join(unknown_key(key, valid) for key in unknown))
        for name, field in cls.model_fields.items():
            value = data.get(field.alias or name)
            if get_origin(field.annotation) is dict and isinstance(value, Mapping):
                value = list(value.values())
            # Else `max_length: on` would count as 1.
            has_boolean = any(isinstance(entry, bool) for entry in (value if isinstance(value, list) else [value]))
            if has_boolean and not _takes_boolean(field.annotation):
                read_so = "got true or false (YAML reads yes, no, on and off so)"
                raise ValueError(f"{field.alias or name}: {read_so}; write a number, or quote the word")
        return data

    @classmethod
    def from_mapping(cls, data: object, place: str) -> Self:
        """Validate a parsed mapping. `place` (a file name, say) opens the error message."""
        if not isinstance(data, Mapping):
            raise ValueError(f"{place}: expected a mapping of keys to values, got {type(data).__name__}")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ValueError(_describe(error, place)) from None

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Reads and validates a YAML file."""
        return cls.from_mapping(read_yaml(path), str(path))

    @classmethod
    def from_bytes(cls, content: bytes, place: str) -> Self:
        """Validate the content of a YAML file that was read. `place` opens the error message."""
        return cls.from_mapping(parse_yaml(content, place), place)


def unknown_key(key: str, valid: list[str], what: str = "key") -> str:
    """The message for an unknown key (or `what` else): names it and the nearest valid one."""
    hint = did_you_mean(key, valid, f"valid {what}s: {', '.join(valid)}")
    return f"unknown {what} '{key}'; {hint}"


def did_you_mean(name: str, valid: Sequence[str], otherwise: str) -> str:
    """The question for the valid name nearest to a wrong one, or `otherwise` where none is near. The name may have any
    length."""
    nearest = difflib.get_close_matches(name[:_COMPARED], valid, n=1, cutoff=0.5)
    return f"did you mean '{nearest[0]}'?" if nearest else otherwise


def refuse_unknown_kind(data: Any, kinds: list[str], what: str) -> Any:
    """Refuse a mapping whose `kind`, which chooses the `what`, is missing or none of `kinds`. Passes all else on."""
    if not isinstance(data, Mapping):
        return data
    if "kind" not in data:
        raise ValueError(f"key 'kind' is missing; it names the {what}: {', '.join(kinds)}")
    if data["kind"] not in kinds:
        message, valid = unknown_key(str(data["kind"]), kinds, "kind"), f"valid kinds: {', '.join(kinds)}"
        raise ValueError(message if valid in message else f"{message} ({valid})")
    return data


def read_yaml(path: Path) -> object:
    """Parse a YAML file with safe types only. Raises ValueError naming the file, the place and the fault."""
    try:
        content = read_bytes(path, DOCUMENT_BYTES)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    return parse_yaml(content, str(path))


def parse_yaml(content: bytes, place: str) -> object:
    """Parse the content of a YAML file. Raises ValueError, opened by `place`. Aliases expand to a bounded size."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: cannot be read ({error})") from None
    try:
        return yaml.load(text, Loader=_CarefulLoader)  # a SafeLoader with more checks
    # PyYAML answers some malformed scalars and tags (`2022-13-45`, `!!bool x`, `!!set [1]`) with these.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{place}: not valid YAML ({' '.join(str(error).split())})") from None


class _CarefulLoader(yaml.SafeLoader):
    """Refuses what YAML 1.1 would silently read as something else: a key given twice, 010 (octal), 12:30 (base 60).

    Refuses nesting without end, and aliases that expand a short text to a huge value, before anything is expanded."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self._depth == _MAX_DEPTH:
            message = f"nested too deeply to be a configuration, over {_MAX_DEPTH} levels"
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, message, mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _refuse_expansion(node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _fault(key_node, "a key must be a single word, not a list or a mapping")
            key = key_node.value
            if key in seen and key != "<<":
                raise _fault(key_node, f"key '{key}' is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        text = node.value.lstrip("+-")
        if ":" in text or (len(text) > 1 and text.startswith("0") and text[1:].replace("_", "").isdigit()):
            raise _fault(node, f"{node.value} would not be read as written; remove the leading zero or write quotes")
        return self.construct_yaml_int(node)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        text: str = self.construct_scalar(node)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise _fault(node, f"{text!r} contains half of a surrogate pair, which is not a character")
        return text


_CarefulLoader.add_constructor("tag:yaml.org,2002:int", _CarefulLoader.construct_integer)
_CarefulLoader.add_constructor("tag:yaml.org,2002:str", _CarefulLoader.construct_text)


def _refuse_expansion(root: yaml.Node) -> None:
    """Raise where aliases and merge keys, each counted as what it stands for, make much of what is written."""
    sizes: dict[int, tuple[float, float]] = {}

    def size_of(node: yaml.Node) -> tuple[float, float]:
        """Entries and levels."""
        if id(node) not in sizes:
            sizes[id(node)] = (math.inf, math.inf)  # while it is counted: a node within itself has no end
            children = node.value if isinstance(node, yaml.CollectionNode) else []
            parts = [size_of(part) for child in children for part in (child if isinstance(child, tuple) else (child,))]
            sizes[id(node)] = (1 + sum(size for size, _ in parts), 1 + max((depth for _, depth in parts), default=0))
        return sizes[id(node)]

    size, depth = size_of(root)
    if size == math.inf:
        raise _fault(root, "an alias refers to something that it is part of")
    if size > len(sizes) + _MAX_EXPANDED or depth > _MAX_DEPTH:
        raise _fault(root, f"aliases and merge keys expand it by over {_MAX_EXPANDED} entries, or {_MAX_DEPTH} levels")


def _fault(node: yaml.Node, message: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, message, node.start_mark)


def _takes_boolean(annotation: Any) -> bool:
    return annotation in (bool, Any, object) or any(map(_takes_boolean, get_args(annotation)))


def _describe(error: ValidationError, place: str) -> str:
    faults = []
    for fault in error.errors(include_url=False, include_context=False):
        # A tag in <> says which form of a union was read: it is no key of the file.
        where = ".".join(str(part) for part in fault["loc"] if not str(part).startswith("<"))
        message = fault["msg"].removeprefix("Value error, ")
        value = fault.get("input")
        shown = f" (got {value!r})" if isinstance(value, str | int | float | bool) else ""
        faults.append(f"{where}: {message}{shown}" if where else message + shown)
    return f"{place}: " + "; ".join(faults)
