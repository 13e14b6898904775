"""A formula over tasks: text -> a function of their answers, `"click * (1 + 4 * like) - 20 * hate"`.

In: a formula of numbers, names, + - * / ** ( ), and the functions below. Out: `Formula`, evaluated by numpy in float64.
Python's own parser reads the text; only the nodes named here are then given a meaning, and nothing of it is executed.

Shapes: N candidates.
"""

import ast
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Part = Callable[[Mapping[str, Array]], Any]

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
_OPERATORS: dict[type[ast.operator], np.ufunc] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
}
_SIGNS: dict[type[ast.unaryop], np.ufunc] = {ast.UAdd: np.positive, ast.USub: np.negative}
_VALID = f"numbers, tasks, + - * / ** ( ) and {', '.join(FUNCTIONS)}"


class Formula:
    """A checked formula; `names` are those it reads, in the order in which they first stand in it.

    Raises ValueError: what is not allowed, at which character, and what is."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"the formula has {len(text)} characters, {MAX_CHARACTERS} at most")
        if not text.isascii():
            raise ValueError(f"the formula may hold {_VALID}, in ASCII")
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            place = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
            raise ValueError(f"not a formula{place}; it may hold {_VALID}") from None
        self._text = text.strip()
        names: dict[str, None] = {}
        self._whole = self._part(tree.body, names, MAX_DEPTH)
        self.names = tuple(names)

    def __call__(self, values: Mapping[str, Array]) -> Array:
        """value_N, given the value_N of every name; NaN and infinity where numpy's rules give them."""
        with np.errstate(all="ignore"):
            value = self._whole(values)
        return np.broadcast_to(value, np.broadcast_shapes(*(array.shape for array in values.values())))

    def _part(self, node: ast.expr, names: dict[str, None], depth: int) -> Part:
        if not depth:
            raise ValueError(f"the formula is nested deeper than {MAX_DEPTH} levels")
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                # Python's own integers would grow without bound under **.
                return _constant(self._finite(node, number))
            case ast.Name(id=name):
                names[name] = None
                return lambda values: values[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _applied(_OPERATORS[type(op)], [self._part(side, names, depth - 1) for side in (left, right)])
            case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _SIGNS:
                return _applied(_SIGNS[type(sign)], [self._part(operand, names, depth - 1)])
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
                function, count = FUNCTIONS[name]
                if len(arguments) != count:
                    raise ValueError(f"{name} takes {count} value{'s' * (count > 1)}, got {len(arguments)}")
                return _applied(function, [self._part(argument, names, depth - 1) for argument in arguments])
        raise ValueError(f"'{self._shown(node)}' at character {node.col_offset + 1} is not allowed; valid: {_VALID}")

    def _finite(self, node: ast.expr, number: float) -> float:
        try:
            if np.isfinite(float(number)):
                return float(number)
        except OverflowError:
            pass
        raise ValueError(f"'{self._shown(node)}' at character {node.col_offset + 1} is too large a number")

    def _shown(self, node: ast.expr) -> str:
        return (ast.get_source_segment(self._text, node) or "")[:60]


def _constant(number: float) -> Part:
    value = np.float64(number)
    return lambda _: value


def _applied(function: np.ufunc, arguments: list[Part]) -> Part:
    return lambda values: function(*(argument(values) for argument in arguments))
