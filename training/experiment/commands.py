"""Command of this room: `python -m training experiment`. What it needs is imported when it runs.

Status 0 says that the experiment could be read, whatever came of it, 3 that it has too few users yet, and 4 that its
arms are not what they were to be.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

# Adds a command and returns what adds its arguments.
AddCommand = Callable[[str, Callable[[argparse.Namespace], None], str], Callable[..., argparse.Action]]


def add_command(command: AddCommand) -> None:
    """Add the command."""
    add = command("experiment", _experiment, "analyse an experiment: its arms' users, with intervals")
    add("folder", metavar="DATA", help="the folder of a join's rows, any path of fsspec")
    add("--experiments", type=Path, required=True, metavar="FILE", help="models/NAME/experiments.yaml")
    add("--name", required=True, metavar="NAME", help="the experiment, or holdout")
    add("--epoch", metavar="EPOCH", help="an epoch of it (default: that of the file)")
    add("--schema", type=Path, metavar="FILE", help="the feed schema (default: that of the newest version beside FILE)")
    add("--model", metavar="NAME", help="the model's name in metrics (default: the schema's)")
    add("--out", type=Path, metavar="OUT", help="folder of the page and of experiment.prom (default: print alone)")


def _experiment(options: argparse.Namespace) -> None:
    from training.experiment.beside import quarantined_days, schema_beside
    from training.experiment.contrasts import analyse
    from training.experiment.question import read_question
    from training.experiment.report import said, write_report
    from training.experiment.textfile import NAME, status_of, write_experiment
    from training.experiment.users import collect_users
    from training.files import entries, output_path, refuse_within

    out = None if options.out is None else output_path(options.out)
    if out is not None:
        refuse_within(out, options.folder, "joined rows")
        entries(out)  # refuses what is no folder
    folder = options.experiments.parent
    question = read_question(options.experiments, options.name, options.epoch, quarantined_days(folder))
    schema = schema_beside(folder, options.schema)
    users = collect_users(options.folder, schema, question)
    analysis = analyse(users, question)
    for line in said(users, analysis, question):
        print(line)
    if out is not None:
        page = write_report(out, users, analysis, question)
        write_experiment(out / NAME, users, analysis, question, options.model or schema.name)
        print(page)
    if status := status_of(analysis):
        raise SystemExit(status)
