"""Raw columns: the values of one feature in a request or a log, checked against the feature's type.

In: JSON values. training.data makes the same columns from Arrow. Out: `Column`, or ColumnError with every faulty row.
Checks run in C over whole columns. A loop over values runs only to say which value was wrong.

Shapes: B rows, V values of all rows.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Dtype = Literal["int64", "string"]
ID_LIMITS = (-(2**63), 2**63 - 1)
FAULTS_SHOWN = 20
_CHUNK = 4096
_MOST_DIGITS = len(str(ID_LIMITS[0]))

Ids = NDArray[np.int64]
Values = NDArray[np.int64] | NDArray[np.float64] | list[str]


class ColumnFault(NamedTuple):
    """One fault of a column: the row it is in (None: the whole column) and what is wrong."""

    row: int | None
    message: str


class ColumnError(ValueError):
    """Column that breaks its feature's contract. `faults` names the rows."""

    def __init__(self, feature: str, faults: Sequence[ColumnFault]) -> None:
        self.feature = feature
        self.faults = tuple(faults)
        row, message = self.faults[0]
        where = "" if row is None else f" in row {row}"
        super().__init__(f"feature '{feature}'{where}: {message}")


class ColumnErrors(ValueError):
    """Every faulty column of a block, for answers that name all faults at once."""

    def __init__(self, errors: Sequence[ColumnError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(map(str, errors)))


class Column(NamedTuple):
    """Raw values of one feature. `missing` marks nulls among `values` (their value is a placeholder). Lists are
    flattened, with `lengths_B` values in each row.

    A log's strings may be given each once: then `codes_V` says which of `values` is at each place."""

    values: Values
    missing: NDArray[np.bool_] | None = None
    lengths_B: Ids | None = None
    codes_V: NDArray[np.int32] | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        if self.lengths_B is not None:
            return len(self.lengths_B)
        return len(self.values if self.codes_V is None else self.codes_V)

    @property
    def num_missing(self) -> int:
        """Number of rows without a value: nulls, or empty lists."""
        if self.lengths_B is not None:
            return len(self.lengths_B) - int(np.count_nonzero(self.lengths_B))
        return 0 if self.missing is None else int(np.count_nonzero(self.missing))

    def decoded(self) -> "Column":
        """The same column with a value at each place."""
        if self.codes_V is None:
            return self
        values: list[str] = np.array([*self.values, ""], dtype=object)[self.codes_V].tolist()
        return Column(values, self.missing, self.lengths_B)


class Unfit(Exception):
    """Value that does not fit its dtype. The slow path finds which one."""


# Of an int64: JavaScript cannot represent every integer, and protobuf's JSON mapping writes strings of digits.
_TYPES: dict[Dtype | None, frozenset[type]] = {
    "int64": frozenset({int, str}),
    "string": frozenset({str}),
    None: frozenset({int, float}),
}
_WANTED: dict[Dtype | None, str] = {
    "int64": "an integer (int64), a string of its digits",
    "string": "a string of Unicode characters",
    None: "a finite number",
}


# JSON Schemas of the same values. An integer is one by its value there: 3.0 too, which is refused here. So is a string
# of digits beyond 64 bits.
_SCHEMAS: dict[Dtype | None, list[dict[str, Any]]] = {
    "int64": [
        {"type": "integer", "format": "int64", "minimum": ID_LIMITS[0], "maximum": ID_LIMITS[1]},
        {"type": "string", "pattern": "^(0|-?[1-9][0-9]{0,18})$"},
    ],
    "string": [{"type": "string"}],
    None: [{"type": "number"}],
}


def value_schema(dtype: Dtype | None) -> dict[str, Any]:
    """JSON Schema of a value, null included, as near as JSON Schema can say."""
    return {"anyOf": [*_SCHEMAS[dtype], {"type": "null"}]}


def flat_column(dtype: Dtype | None, values: Sequence[object]) -> tuple[Values, NDArray[np.bool_] | None]:
    """Checks and converts scalars with passes that run in C: one over the types, one over the values. None is missing,
    and marked so where there is one. Raises Unfit."""
    missing: NDArray[np.bool_] | None = None
    types = {type(values[0])} if len(values) == 1 else set(map(type, values))
    if type(None) in types:
        types.discard(type(None))
        missing = np.fromiter((value is None for value in values), np.bool_, len(values))
        placeholder: object = "" if dtype == "string" else 0
        values = [placeholder if value is None else value for value in values]
    if not types <= _TYPES[dtype]:
        raise Unfit
    if dtype == "int64" and str in types:
        values = _integers(values)
    if dtype == "string":
        strings: list[str] = list(values)  # type: ignore[arg-type]
        try:
            "".join(strings).encode()
        except UnicodeEncodeError:  # half of a surrogate pair: not a character, so it has no UTF-8 bytes to hash
            raise Unfit from None
        return strings, missing
    try:
        if dtype == "int64":
            return np.array(values, dtype=np.int64), missing
        numbers = np.array(values, dtype=np.float64)
    except OverflowError:
        raise Unfit from None
    if not np.isfinite(numbers).all():
        raise Unfit
    return numbers, missing


def _integers(values: Sequence[object]) -> list[object]:
    """Integers and strings of digits as integers. Raises Unfit for a string that an integer is not written as: with
    blanks, a plus, zeros before it, an exponent, digits of another script."""
    texts = [value for value in values if isinstance(value, str)]
    if max(map(len, texts)) > _MOST_DIGITS:
        raise Unfit
    try:
        integers = list(map(int, texts))
    except ValueError:
        raise Unfit from None
    if list(map(str, integers)) != texts:
        raise Unfit
    following = iter(integers)
    return [next(following) if isinstance(value, str) else value for value in values]


def checked_column(name: str, dtype: Dtype | None, values: Sequence[object], lengths_B: Ids | None = None) -> Column:
    """A feature's column from JSON scalars (None is null), in lists of the given lengths if any. Raises ColumnError
    naming each faulty row."""
    try:
        flat, missing = flat_column(dtype, values)
    except Unfit:
        rows = range(len(values)) if lengths_B is None else np.repeat(np.arange(len(lengths_B)), lengths_B).tolist()
        raise ColumnError(name, _faults(dtype, values, rows)) from None
    return Column(flat, missing, lengths_B)


def _faults(dtype: Dtype | None, values: Sequence[object], rows: Sequence[int]) -> list[ColumnFault]:
    faults: list[ColumnFault] = []
    # Chunks without a fault are skipped in C: the one wrong id of a hostile list of millions is still found fast.
    for start in range(0, len(values), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        if _fits(dtype, values[chunk]):
            continue
        for row, value in zip(rows[chunk], values[chunk], strict=True):
            if not _fits(dtype, [value]):
                faults.append(ColumnFault(row, f"expected {_WANTED[dtype]} or null, got {shown(value, dtype)}"))
                if len(faults) == FAULTS_SHOWN:
                    return faults
    assert faults, "a column was refused without a faulty value"
    return faults


def _fits(dtype: Dtype | None, values: Sequence[object]) -> bool:
    try:
        flat_column(dtype, values)
    except Unfit:
        return False
    return True


def shown(value: object, dtype: Dtype | None = None) -> str:
    """Kind of a value, in words."""
    # Types only: values of a user's features do not belong in errors that end up in logs.
    if dtype == "int64" and isinstance(value, str):
        return "another string"
    names = {bool: "true or false", str: "a string", list: "a list", dict: "an object", type(None): "null"}
    if isinstance(value, float):
        return "a fraction" if np.isfinite(value) else "a number that is not finite"
    if isinstance(value, int) and not isinstance(value, bool):
        return "an integer beyond 64 bits" if not ID_LIMITS[0] <= value <= ID_LIMITS[1] else "an integer"
    return names.get(type(value), type(value).__name__)
