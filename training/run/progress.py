"""Progress of training on a terminal: rows, rows per second, time left. Plain lines where there is no terminal."""

from typing import Self

from rich.progress import TaskProgressColumn, TextColumn

from training.progress_bar import progress_bar


class TrainingProgress:
    """A bar over all epochs' rows. `say` prints a line above it."""

    def __init__(self, rows_per_epoch: int, epochs: int, *, show: bool) -> None:
        self._rows_per_epoch = rows_per_epoch
        self._epochs = epochs
        words = TextColumn("rows  {task.fields[speed]}  loss {task.fields[loss]}")
        self._bar = progress_bar(words, TaskProgressColumn(), show=show)
        self._task = self._bar.add_task("", total=rows_per_epoch * epochs, speed="", loss="")
        self._loss = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start_epoch(self, epoch: int, rows_done: int) -> None:
        """Begin (or, after a resume, go on with) an epoch."""
        completed = epoch * self._rows_per_epoch + rows_done
        self._bar.update(self._task, completed=completed, description=f"epoch {epoch + 1}/{self._epochs}")

    def advance(self, rows: int, loss: float) -> None:
        """Count the rows of a step."""
        # A smoothed loss reads better than the noise of one batch. It is shown, never used.
        self._loss = loss if not self._loss else 0.98 * self._loss + 0.02 * loss
        speed = self._bar.tasks[0].speed
        shown = f"{speed:,.0f} rows/s" if speed else ""
        self._bar.update(self._task, advance=rows, speed=shown, loss=f"{self._loss:.4f}")

    def print_line(self, line: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(line, markup=False)
