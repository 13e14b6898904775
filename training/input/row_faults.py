"""Rows of a column that break a rule: marked, so that a reader with a budget (data.max_bad_rows) leaves them out."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.wording import counted

Mask = NDArray[np.bool_]


class RowFault(ValueError):
    """Rows of a column that break a rule: `is_bad_B` marks them."""

    def __init__(self, rule: str, is_bad_B: Mask, got: Callable[[int], str] | None = None) -> None:
        self.rule = rule
        self.is_bad_B = is_bad_B
        self._got = got
        super().__init__(self.first_among(np.ones(len(is_bad_B), bool)))

    def first_among(self, is_read_B: Mask, before: int = 0) -> str:
        """The fault in words, by its first row among those read; `before` rows of the file come before this part."""
        is_bad_B = self.is_bad_B & is_read_B
        row, rows = int(is_bad_B.argmax()), int(is_bad_B.sum())
        got = "" if self._got is None else f", got {self._got(row)}"
        return f"row {before + row}: {self.rule}{got}; {counted(rows, 'such row')}"


class Fault(NamedTuple):
    """A fault of rows with the column it is in, as a message names it."""

    column: str
    fault: RowFault
