"""Statement of a job's data, made once before it begins: files, folders, rows, and which rows it leaves out.

In: a log's files, and counts of its rows. Out: a few lines, the same for every job that reads a log.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from training.data.files import counted_names
from training.wording import counted

log = logging.getLogger(__name__)


class Listed(Protocol):
    """Files, as a statement names them."""

    @property
    def place(self) -> str:
        """Folder of the files."""
        ...

    @property
    def passed_over(self) -> Mapping[str, Sequence[str]]:
        """By kind the names of what is not read."""
        ...

    @property
    def names(self) -> list[str]:
        """The files' names within the folder."""
        ...


@dataclass(frozen=True, slots=True)
class FilesOfFolder:
    """The files of a folder that a data set is made of, by their paths. The folder's others are not read."""

    paths: list[Path]

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.paths[0].parent)

    @property
    def names(self) -> list[str]:
        """The files' names."""
        return [path.name for path in self.paths]

    @property
    def passed_over(self) -> dict[str, list[str]]:
        """Other entries of the folder."""
        others = [path.name for path in self.paths[0].parent.iterdir() if path.name not in self.names]
        return {"other": others} if others else {}


@dataclass(slots=True)
class Found:
    """Counts of a log. `splits` counts the rows that are read, by split, and is None where a job has no splits.
    `left_out` counts the rows of splits that break a rule, by fault. `ungrouped` counts the rows of splits, bad ones
    among them, without a value of the column that `group_by` names. `filled` counts the files with rows that lack a
    column, which is null there."""

    files: Listed
    rows: int = 0
    splits: Counter[str] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    group_by: str | None = None
    ungrouped: int = 0
    filled: Counter[str] = field(default_factory=Counter)

    def add_filled(self, names: Sequence[str], rows: int) -> None:
        """Count a file of so many rows by the columns that it lacks."""
        if rows:
            self.filled.update(names)

    @property
    def in_no_split(self) -> int:
        """Rows that no split takes."""
        return 0 if self.splits is None else self.rows - self.splits.total() - sum(self.left_out.values())

    def lines(self) -> list[str]:
        """The statement: a line on the log, and one each for splits, what is left out, and what is not read."""
        names = self.files.names
        folders = len({name.rpartition("/")[0] for name in names})
        read = f"{counted(len(names), 'file')} in {counted(folders, 'folder')}, {_rows(self.rows)}"
        lines = [f"{self.files.place}: {read}"]
        if self.splits is not None:
            of_splits = ", ".join(f"{split} {_rows(rows)}" for split, rows in self.splits.items())
            lines.append(f"{of_splits}; in no split {_rows(self.in_no_split)}")
        lines += self.left_out_lines()
        if self.ungrouped:
            lines.append(f"one group of {_rows(self.ungrouped)} without '{self.group_by}' (data.group_by)")
        lines += [
            f"column '{name}' is null in {counted(files, 'file')} without it" for name, files in self.filled.items()
        ]
        lines += [f"not read: {names_of_kind}" for names_of_kind in counted_names(self.files.passed_over)]
        return lines

    def left_out_lines(self) -> list[str]:
        """A line for each rule that rows were left out by."""
        return [f"left out {_rows(rows)}: {reason}" for reason, rows in self.left_out.items()]

    def log_counts(self) -> None:
        """Log the statement."""
        log.info("%s", "\n  ".join(self.lines()))


def _rows(count: int) -> str:
    return counted(count, "row")
