"""One entry of value_models.yaml changed or added, with all other text as it stands: comments, order, spelling.

In: the file's content, a name and an entry. Out: the new content. What is replaced is the text of one value. Then both
are read, and compared: an edit that would change another entry is refused.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from model.strict_yaml import parse_yaml
from model.untrusted_files import SMALL_BYTES

_BY_HAND = "edit the file by hand"
# No line is folded: an entry is one.
_WIDTH = 2**20


def with_entry(content: bytes, name: str, entry: Mapping[str, Any], place: str) -> bytes:
    """The content of a file with an entry. Raises ValueError, opened by `place`, where it is no mapping, or where other
    entries cannot stay as they are."""
    before = parse_yaml(content, place)
    if not isinstance(before, Mapping):
        raise ValueError(f"{place}: needs a mapping of value models; {_BY_HAND}")
    text = content.decode("utf-8")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode), "it was read as one"
    edited = _edited(text, root, name, entry).encode("utf-8")
    if len(edited) > SMALL_BYTES:
        raise ValueError(f"{place}: would have {len(edited)} bytes, {SMALL_BYTES} at most")
    try:
        after = parse_yaml(edited, place)
    except ValueError:
        after = None
    if after != {**before, name: dict(entry)}:
        raise ValueError(f"{place}: '{name}' cannot be written without a change to other entries; {_BY_HAND}")
    return edited


def entry_line(name: str, entry: Mapping[str, Any]) -> str:
    """An entry as a line of its own."""
    return f"{_flow(name)}: {_flow(dict(entry))}\n"


def _edited(text: str, root: yaml.MappingNode, name: str, entry: Mapping[str, Any]) -> str:
    for key, value in root.value:
        if key.value == name:
            start, end = value.start_mark.index, _end(value)
            while end > start and text[end - 1].isspace():
                end -= 1
            # Of an empty value, nothing stands behind the colon.
            return text[:start] + ("" if text[start - 1].isspace() else " ") + _flow(dict(entry)) + text[end:]
    line = entry_line(name, entry)
    if root.flow_style:
        end = root.end_mark.index - 1
        return text[:end] + (", " if root.value else "") + line.rstrip("\n") + text[end:]
    return text + ("" if text.endswith("\n") else "\n") + " " * root.start_mark.column + line


def _end(node: yaml.Node) -> int:
    """The end of a node's own text. PyYAML has a block end where the next key begins, behind comments."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    end: int = node.end_mark.index
    return end


def _flow(value: object) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=_WIDTH, allow_unicode=True)
    return text.removesuffix("...\n").rstrip("\n")
