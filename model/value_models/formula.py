"""A formula over outputs: text -> a function of their answers, `"click * (1 + 4 * like) - 20 * rating.bad"`.

In: a formula of numbers, names, + - * / ** ( ), and the functions below. Out: `Formula`, evaluated by numpy in float64.
A name is that of an output: a task, or `task.class` with one dot. A `Condition`, `"duration_ms > 3000 and like < .1"`,
is true or false: it compares formulas, and its names may be those of features too. Python's own parser reads the text.
Only the nodes named here are then given a meaning, and nothing of it is executed.

Shapes: N candidates.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from keyword import iskeyword
from typing import Any, ClassVar

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
_COMPARISONS: dict[type[ast.cmpop], np.ufunc] = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}
_JOINED: dict[type[ast.boolop], np.ufunc] = {ast.And: np.logical_and, ast.Or: np.logical_or}
_TRUTHS = frozenset({*_COMPARISONS.values(), *_JOINED.values(), np.logical_not})


@dataclass(frozen=True, slots=True)
class Term:
    """A number or a name (`leaf`), or a function of other terms. `text` is how it is written."""

    text: str
    leaf: float | str = 0.0
    function: np.ufunc | None = None
    arguments: tuple["Term", ...] = ()

    @property
    def is_condition(self) -> bool:
        """True for what is true or false, and no number."""
        return self.function in _TRUTHS

    def value(self, values: Mapping[str, Array]) -> Any:
        """value_N given those of the names, by numpy's rules. A number where it reads no name."""
        if self.function is not None:
            return self.function(*(argument.value(values) for argument in self.arguments))
        return values[self.leaf] if isinstance(self.leaf, str) else np.float64(self.leaf)


class Formula:
    """A checked formula: its terms (`whole`) and the `names` that they read, in the order in which they first stand.

    Raises ValueError: what is not allowed, at which character, and what is."""

    called: ClassVar[str] = "formula"
    reader_of_words: ClassVar[str] = "weights alone"
    valid: ClassVar[str] = f"numbers, tasks, task.class, + - * / ** ( ) and {', '.join(FUNCTIONS)}"

    def __init__(self, text: str) -> None:
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"the {self.called} has {len(text)} characters, {MAX_CHARACTERS} at most")
        if not text.isascii():
            raise ValueError(f"the {self.called} may contain {self.valid}, in ASCII")
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            place = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
            reserved = next((word for word in re.findall(r"\w+", text) if iskeyword(word)), None)
            hint = f" ('{reserved}' is a word of Python's, which {self.reader_of_words} can read)" if reserved else ""
            raise ValueError(f"not a {self.called}{place}{hint}; it may contain {self.valid}") from None
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
            raise ValueError(f"the {self.called} is nested deeper than {MAX_DEPTH} levels")
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
        raise self._not_allowed(node)

    def _not_allowed(self, node: ast.expr) -> ValueError:
        place = f"'{self._shown(node)}' at character {node.col_offset + 1}"
        return ValueError(f"{place} is not allowed; valid: {self.valid}")

    def _applied(
        self, node: ast.expr, function: np.ufunc, arguments: list[ast.expr], names: dict[str, None], depth: int
    ) -> Term:
        terms = tuple(self._number(argument, names, depth - 1) for argument in arguments)
        return Term(self._shown(node), function=function, arguments=terms)

    def _number(self, node: ast.expr, names: dict[str, None], depth: int) -> Term:
        """A term that is a number."""
        term = self._term(node, names, depth)
        if term.is_condition:
            raise ValueError(f"'{term.text}' at character {node.col_offset + 1} is true or false, not a number")
        return term

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


class Condition(Formula):
    """A checked condition, true or false for each candidate. A comparison with what is no number is false.

    Raises ValueError: what is not allowed, at which character, and what is."""

    called: ClassVar[str] = "condition"
    reader_of_words: ClassVar[str] = "no condition"
    valid: ClassVar[str] = (
        f"numbers, features, tasks, task.class, + - * / ** ( ), < <= > >= == !=, and or not, and {', '.join(FUNCTIONS)}"
    )

    def __init__(self, text: str) -> None:
        super().__init__(text)
        if not self.whole.is_condition:
            raise ValueError(f"'{text.strip()[:MOST_SHOWN]}' is a number; compare it, as in: {text.strip()[:20]} > 0")

    def _term(self, node: ast.expr, names: dict[str, None], depth: int) -> Term:
        if not depth:
            raise ValueError(f"the {self.called} is nested deeper than {MAX_DEPTH} levels")
        match node:
            case ast.Compare(left=left, ops=signs, comparators=rest) if {*map(type, signs)} <= _COMPARISONS.keys():
                numbers = [self._number(one, names, depth - 1) for one in (left, *rest)]
                text = self._shown(node)
                pairs = zip(signs, pairwise(numbers), strict=True)
                return _joined(np.logical_and, text, [_compared(type(sign), text, pair) for sign, pair in pairs])
            case ast.BoolOp(op=op, values=values):
                truths = [self._truth(one, names, depth - 1) for one in values]
                return _joined(_JOINED[type(op)], self._shown(node), truths)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                truth = self._truth(operand, names, depth - 1)
                return Term(self._shown(node), function=np.logical_not, arguments=(truth,))
        return super()._term(node, names, depth)

    def _truth(self, node: ast.expr, names: dict[str, None], depth: int) -> Term:
        """A term that is true or false."""
        term = self._term(node, names, depth)
        if not term.is_condition:
            raise ValueError(f"'{term.text}' at character {node.col_offset + 1} is a number, not true or false")
        return term


def _compared(sign: type[ast.cmpop], text: str, pair: tuple[Term, Term]) -> Term:
    if sign is ast.NotEq:
        # numpy has NaN unequal to everything.
        return _joined(np.logical_or, text, [Term(text, function=one, arguments=pair) for one in (np.less, np.greater)])
    return Term(text, function=_COMPARISONS[sign], arguments=pair)


def _joined(function: np.ufunc, text: str, terms: list[Term]) -> Term:
    """Terms as a tree whose depth grows with the logarithm of their number."""
    if len(terms) == 1:
        return terms[0]
    middle = len(terms) // 2
    return Term(text, 0.0, function, (_joined(function, text, terms[:middle]), _joined(function, text, terms[middle:])))
