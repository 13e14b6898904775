"""Rows that break a rule: refused by name, or left out and counted while data.max_bad_rows allows.

In: columns of a log. Out: `RowFault`, which says which rows break which rule, and `BadRows`, the budget of a reader.

Shapes: B rows.
"""

from collections import Counter
from collections.abc import Callable, Sequence
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
        """The fault in words, by its first row among those read. `before` rows of the file come before this part."""
        is_bad_B = self.is_bad_B & is_read_B
        row, rows = int(is_bad_B.argmax()), int(is_bad_B.sum())
        got = "" if self._got is None else f", got {self._got(row)}"
        return f"row {before + row}: {self.rule}{got}; {counted(rows, 'such row')}"


class Fault(NamedTuple):
    """A fault of rows with the column it is in, as a message names it."""

    column: str
    fault: RowFault


class BadRows:
    """A budget of rows that may be left out. `skipped` counts them by fault, each row once."""

    def __init__(self, budget: int = 0) -> None:
        self.budget = budget
        self.skipped: Counter[str] = Counter()

    def copy(self) -> "BadRows":
        """The same counts, to go on from."""
        copied = BadRows(self.budget)
        copied.skipped = self.skipped.copy()
        return copied

    def good_rows(
        self, faults: Sequence[Fault], place: str, is_wanted_B: Mask | None = None, before: int = 0
    ) -> Mask | None:
        """Mask of the rows of a part that break no rule, None where all are good. Only rows that are wanted count.
        `place` is the part's file, and `before` rows of it come before the part. Raises ValueError beyond the
        budget."""
        is_good_B: Mask | None = None
        for column, fault in faults:
            is_counted_B = np.ones(len(fault.is_bad_B), bool) if is_wanted_B is None else is_wanted_B
            if is_good_B is not None:
                is_counted_B = is_counted_B & is_good_B
            bad = int((fault.is_bad_B & is_counted_B).sum())
            if not bad:
                continue
            self.skipped[f"{column}: {fault.rule}"] += bad
            if self.skipped.total() > self.budget:
                beyond = f"; more rows are bad than data.max_bad_rows {self.budget:,} allows" if self.budget else ""
                raise ValueError(f"{place}: {column}: {fault.first_among(is_counted_B, before)}{beyond}")
            is_good_B = ~fault.is_bad_B if is_good_B is None else is_good_B & ~fault.is_bad_B
        return is_good_B
