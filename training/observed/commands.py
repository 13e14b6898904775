"""Command of this room: `python -m training observed`. What it needs is imported when it runs."""

import argparse
from collections.abc import Callable
from pathlib import Path

# Adds a command and returns what adds its arguments.
AddCommand = Callable[[str, Callable[[argparse.Namespace], None], str], Callable[..., argparse.Action]]


def add_command(command: AddCommand) -> None:
    """Add the command."""
    add = command("observed", _observed, "report what was answered against what users did, by day and version")
    add("folder", metavar="DIR", help="the folder of a join's rows, any path of fsspec")
    add("--schema", type=Path, required=True, metavar="FILE", help="the feed schema that join.yaml names")
    add("--out", type=Path, required=True, metavar="OUT", help="folder of the page and of observed.prom")
    add("--model", metavar="NAME", help="the model's name in metrics (default: the schema's)")
    add("--days", type=int, default=14, metavar="N", help="the last N days of the rows (default 14)")


def _observed(options: argparse.Namespace) -> None:
    from model.schema import FeedSchema
    from training.files import output_path
    from training.observed.report import report

    if options.days < 1:
        raise ValueError(f"--days: at least 1, got {options.days}")
    schema = FeedSchema.from_yaml(options.schema)
    out = output_path(options.out)
    print(report(options.folder, schema, out, model=options.model or schema.name, days=options.days))
