"""YAML files with a contract: every key is known, every fault names its place.

In: a YAML file or mapping, and the pydantic model it must obey. Out: the validated model. Raises ValueError (one
message that lists every fault as `place: rule, value, what to do`), never a traceback of the parser.
"""

import difflib
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator


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
        return data

    @classmethod
    def from_mapping(cls, data: object, place: str) -> Self:
        """Validates a parsed mapping; `place` (a file name, say) opens the error message."""
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


def unknown_key(key: str, valid: list[str]) -> str:
    """The message for an unknown key: names it and the nearest valid one."""
    nearest = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    hint = f"did you mean '{nearest[0]}'?" if nearest else f"valid keys: {', '.join(valid)}"
    return f"unknown key '{key}'; {hint}"


def read_yaml(path: Path) -> object:
    """Parses a YAML file with safe types only; a key given twice is an error, as the first would be lost silently."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # a SafeLoader with one more check
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply to be a configuration") from None


class _UniqueKeyLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _describe(error: ValidationError, place: str) -> str:
    faults = []
    for fault in error.errors(include_url=False, include_context=False):
        where = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        value = fault.get("input")
        shown = f" (got {value!r})" if isinstance(value, str | int | float | bool) else ""
        faults.append(f"{where}: {message}{shown}" if where else message + shown)
    return f"{place}: " + "; ".join(faults)
