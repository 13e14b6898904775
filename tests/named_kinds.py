"""Code that names a kind of features or tasks, where it should ask for what it needs."""

import ast
from collections.abc import Container, Iterator


def named_kinds(source: str, classes: Container[str], kinds: Container[str]) -> Iterator[int]:
    """Lines that name the class of a kind, or compare a `kind` with the name of one."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name) if name in classes:
                yield node.lineno
            case ast.Compare(left=ast.Attribute(attr="kind"), comparators=[ast.Constant(value=value)]) if (
                value in kinds
            ):
                yield node.lineno
