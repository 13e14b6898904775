"""Rows that break a rule: refused by name, or left out and counted while data.max_bad_rows allows."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from training.input.row_faults import Fault, Mask


class BadRows:
    """A budget of rows that may be left out; `skipped` counts them by what was wrong, each row once."""

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
        """Which rows of a part break no rule, None where all are good; only rows that are wanted count. `place` is the
        part's file, and `before` rows of it come before the part. Raises ValueError beyond the budget."""
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
