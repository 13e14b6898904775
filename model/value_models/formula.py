"""A formula over outputs: text -> a function of their answers, `"click * (1 + 4 * like) - 20 * rating.bad"`.

In: a formula of numbers, names, + - * / ** ( ), and the functions below. Out: `Formula`, evaluated by numpy in float64.
A name is that of an output: a task, or `task.class` with one dot. Python's own parser reads the text. Only the nodes
named here are then given a meaning, and nothing of it is executed.

Shapes: N candidates.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FUNCTIONS: dict[str, tuple[np.ufunc, int]] = {
    "abs": (np.absolute, 1),
    "exp": (np.exp, 1),
    "log": (np.log, 1),
    "max": (np.maximum, 2),
    "min": (np.minimum, 2),
    "sqrt": (np.sqrt, 1),
}
MAX_CHARACTERS = 1000
MAX_DEPTH = 50
MOST_SHOWN = 60
_OPERATORS: dict[type[ast.operator], np.ufunc] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
}
_SIGNS: dict[type[ast.unaryop], np.ufunc] = {ast.UAdd: np.positive, ast.USub: np.negative}
_VALID = f"numbers, tasks, task.class, + - * / ** ( ) and {', '.join(FUNCTIONS)}"


@dataclass(frozen=True, slots=True)
class Term:
    """A number or a name (`leaf`), or a function of other terms. `text` is how it is written."""

    text: str
    leaf: float | str = 0.0
    function: np.ufunc | None = None
    arguments: tuple["Term", ...] = ()

    def value(self, values: Mapping[str, Array]) -> Any:
        """value_N given those of the names, by numpy's rules. A number where it reads no name."""
        if self.function is not None:
            return self.function(*(argument.value(values) for argument in self.arguments))
        return values[self.leaf] if isinstance(self.leaf, str) else np.float64(self.leaf)


class Formula:
    """A checked formula: its terms (`whole`) and the `names` that they read, in the order in which they first stand.

    Raises ValueError: what is not allowed, at which character, and what is."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"the formula has {len(text)} characters, {MAX_CHARACTERS} at most")
        if not text.isascii():
            raise ValueError(f"the formula may contain {_VALID}, in ASCII")
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            place = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
            reserved = next((word for word in re.findall(r"\w+", text) if iskeyword(word)), None)
            hint = f" ('{reserved}' is a word of Python's, which weights alone can read)" if reserved else ""
            raise ValueError(f"not a formula{place}{hint}; it may contain {_VALID}") from None
        self._text = text.strip()
        names: dict[str, None] = {}
        self.whole = self._term(tree.body, names, MAX_DEPTH)
        self.names = tuple(names)

    def __call__(self, values: Mapping[str, Array]) -> Array:
        """value_N, given the value_N of every name. NaN and infinity where numpy's rules give them."""
        with np.errstate(all="ignore"):
            value = self.whole.value(values)
        return np.broadcast_to(value, np.broadcast_shapes(*(array.shape for array in values.values())))

    def _term(self, node: ast.expr, names: dict[str, None], depth: int) -> Term:
        if not depth:
            raise ValueError(f"the formula is nested deeper than {MAX_DEPTH} levels")
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                # Python's own integers would grow without bound under **.
                return Term(self._shown(node), self._finite(node, number))
            case ast.Name(id=name):
                names[name] = None
                return Term(name, name)
            case ast.Attribute(value=ast.Name(id=task), attr=label):
                # No attribute is ever read of anything: the two words are the output's name.
                name = f"{task}.{label}"
                names[name] = None
                return Term(name, name)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return self._applied(node, _OPERATORS[type(op)], [left, right], names, depth)
            case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _SIGNS:
                return self._applied(node, _SIGNS[type(sign)], [operand], names, depth)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
                function, count = FUNCTIONS[name]
                if len(arguments) != count:
                    raise ValueError(f"{name} takes {count} value{'s' * (count > 1)}, got {len(arguments)}")
                return self._applied(node, function, arguments, names, depth)
        raise ValueError(f"'{self._shown(node)}' at character {node.col_offset + 1} is not allowed; valid: {_VALID}")

    def _applied(
        self, node: ast.expr, function: np.ufunc, arguments: list[ast.expr], names: dict[str, None], depth: int
    ) -> Term:
        terms = tuple(self._term(argument, names, depth - 1) for argument in arguments)
        return Term(self._shown(node), function=function, arguments=terms)

    def _finite(self, node: ast.expr, number: float) -> float:
        try:
            if np.isfinite(float(number)):
                return float(number)
        except OverflowError:
            pass
        raise ValueError(f"'{self._shown(node)}' at character {node.col_offset + 1} is too large a number")

    def _shown(self, node: ast.expr) -> str:
        text = ast.get_source_segment(self._text, node) or ""
        return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + "..."
