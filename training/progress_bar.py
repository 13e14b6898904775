"""Progress of a job on a terminal: what is done of all, and the time that is left."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn


def progress_bar(*columns: ProgressColumn, show: bool = True, transient: bool = False) -> Progress:
    """A bar on stderr with these `columns` behind its counts. It is not drawn where stderr is no terminal.

    Its console prints lines above it, anywhere, and nothing without `show`. A `transient` one is gone at the end."""
    console = Console(stderr=True, quiet=not show, highlight=False, soft_wrap=True)
    begin = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    is_drawn = show and console.is_terminal
    return Progress(*begin, *columns, TimeRemainingColumn(), console=console, disable=not is_drawn, transient=transient)
