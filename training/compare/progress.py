"""Runs jobs and shows how far they are: a bar, or lines where there is no terminal, with the time that is left.

In: jobs, all at once or in rounds. Out: the outcomes of those that failed.
"""

import time
from collections.abc import Sequence
from typing import Self

from rich.progress import TimeElapsedColumn

from training.compare.workers import Job, Outcome, run_jobs
from training.progress_bar import progress_bar


class ShownJobs:
    """Jobs of one kind, `total` in all with those that are done already."""

    def __init__(self, what: str, total: int, processes: int) -> None:
        self._bar = progress_bar(TimeElapsedColumn())
        self._task = self._bar.add_task(what, total=total)
        self._what, self._total, self._processes = what, total, processes
        self._ended, self._started = 0, time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def run(self, jobs: Sequence[Job], left: int | None = None) -> list[Outcome]:
        """Runs jobs and returns the outcomes that are faults. `left` counts those of later rounds too."""
        failed = []
        left = len(jobs) if left is None else left
        for outcome in run_jobs(jobs, self._processes):
            left, self._ended = left - 1, self._ended + 1
            if outcome.fault is not None:
                failed.append(outcome)
            remaining = (time.monotonic() - self._started) / self._ended * left
            left_words = f"about {_duration(remaining)} left" if left else "done"
            self._bar.update(self._task, completed=self._total - left)
            ended = f"failed: {outcome.fault}" if outcome.fault else f"{outcome.seconds:.0f} s"
            place = f"{self._what} {self._total - left}/{self._total}"
            self._bar.console.print(f"{place}  {outcome.cell}  {ended}  ({left_words})", markup=False)
        return failed


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
