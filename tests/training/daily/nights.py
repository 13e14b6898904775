"""A feed that goes on day by day, for tests of the cycle: its files, its settings, and nights at their times.

In: a folder. Out: a `Feed`: days of rows drawn from the law of tests/training_data.py, a training file with moving
windows, a cycle's file. Labels of a day can be inverted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from model.rollout.decisions import Decisions
from model.rollout.journal import Entry, Journal
from model.rollout.labels import FILE_NAME, Labels, LabelsFile
from tests.training_data import feed_table, training_file
from training.daily.cycle import run_cycle
from training.daily.cycle_file import Cycle

FIRST = date(2026, 11, 1)
ROWS = 1200
SCHEMA = """
name: clips
features:
  - {name: user_id,  side: user,      kind: id,      buckets: 100, dim: 4}
  - {name: history,  side: user,      kind: id_list, table: video, max_length: 3, pooling: mean}
  - {name: tab,      side: context,   kind: id,      dtype: string, vocabulary: [home, follow], dim: 4}
  - {name: video,    side: candidate, kind: id,      buckets: 50, dim: 4}
  - {name: duration, side: candidate, kind: number,  transform: [log1p, standardise], missing: 9}
tasks:
  - {name: click, kind: binary,     label: is_click}
  - {name: watch, kind: regression, label: watch_ms, transform: log1p}
"""
Change = Callable[[pa.Table], pa.Table]


def as_is(table: pa.Table) -> pa.Table:
    """The rows as they were drawn."""
    return table


def inverted(table: pa.Table) -> pa.Table:
    """The rows with every click turned round."""
    place = table.schema.get_field_index("is_click")
    return table.set_column(place, "is_click", pa.array(1 - table.column("is_click").to_numpy()))


def of_other_tastes(table: pa.Table) -> pa.Table:
    """The rows with labels that mostly say nothing of what made them. A fifth are as they were."""
    rng = np.random.default_rng(table.num_rows)
    order = np.where(rng.random(table.num_rows) < 0.2, np.arange(table.num_rows), rng.permutation(table.num_rows))
    for label in ("is_click", "watch_ms"):
        place = table.schema.get_field_index(label)
        table = table.set_column(place, label, table.column(label).take(pa.array(order)))
    return table


@dataclass(frozen=True)
class Feed:
    """A feed in a folder. Days are counted from 0."""

    folder: Path

    @property
    def models(self) -> Path:
        """The model's folder."""
        return self.folder / "models" / "clips"

    @property
    def file(self) -> Path:
        """The cycle's file."""
        return self.folder / "daily.yaml"

    def write_day(self, number: int, change: Change = as_is, rows: int = ROWS) -> None:
        """Write the rows of a day."""
        table = change(feed_table(rows, seed=100 + number).drop_columns(["day", "is_like", "like_known", "position"]))
        folder = self.folder / "data" / f"date={day(number):%Y%m%d}"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / "rows.parquet")

    def write_files(self, **changes: Any) -> None:
        """Write the training file and the cycle's. `changes` replace keys of the latter."""
        windows = {"column": "date", "end": "latest", "train": {"days": 3}, "validation": {"days": 1}}
        data = {"path": str(self.folder / "data"), "split": windows, "group_by": "user_id"}
        train = training_file(
            self.folder, schema=SCHEMA, data=data, epochs=2, output=str(self.folder / "runs"),
            optimizer={"tables": {"learning_rate": 0.1}, "dense": {"learning_rate": 0.01}},
        )  # fmt: skip
        content = {
            "models": str(self.folder / "models"),
            "model": "clips",
            "train": str(train),
            "data_gate": {"min_rows": 500},
            # With so few users intervals are wide, and most nights are to pass.
            "quality_gate": {"max_worse": 0.5},
            "publish": {"label": "stable"},
            **changes,
        }
        self.file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    def run_night(self, number: int) -> str:
        """Run the night after a day, and return how it ended."""
        return run_cycle(Cycle.load(self.file), night(number))

    @property
    def labels(self) -> Labels:
        """The labels as they are."""
        file = LabelsFile(self.models / FILE_NAME)
        file.poll()
        assert file.error is None
        return file.last_valid

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The journal's entries."""
        content = Journal(self.models).read()
        assert not content.faults
        return content.entries

    @property
    def decisions(self) -> Decisions:
        """Decisions of the journal."""
        return Decisions(self.entries)

    def place(self) -> str:
        """Place of a night: the step of the journal's last entry."""
        return self.entries[-1].step if self.models.is_dir() and self.entries else "none"

    def versions(self) -> list[int]:
        """Numbers of the published versions."""
        return sorted(int(path.name) for path in self.models.iterdir() if path.name.isdecimal())


def day(number: int) -> date:
    """A day of the feed."""
    return FIRST + timedelta(days=number)


def night(number: int) -> datetime:
    """The time of the night after a day."""
    return datetime.combine(day(number + 1), time(2, 30), UTC)
