"""Command of this room: `python -m training score`. What it needs is imported when it runs."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

# Adds a command and returns what adds its arguments.
AddCommand = Callable[[str, Callable[[argparse.Namespace], None], str], Callable[..., argparse.Action]]


def add_command(command: AddCommand) -> None:
    """Add the command."""
    add = command("score", _score, "score Parquet files by a published version, as a service would")
    add("version", type=Path, metavar="VERSION", help="its folder, models/NAME/VERSION")
    add("input", metavar="INPUT", help="a Parquet file or a folder of them, any path of fsspec")
    add("--out", type=Path, required=True, help="folder for the Parquet files with the scores")
    add("--columns", default="", metavar="A,B", help="columns to carry through: ids, labels")
    add(
        "--prefix",
        default="",
        metavar="TEXT",
        help="before the names of `score` and `answer_<task>` (default: nothing)",
    )
    add(
        "--group-by",
        metavar="COLUMN",
        help="rows with one value of it are one request: its user and context are computed once (default: none)",
    )
    add("--value-model", default="default", metavar="NAME", help="what combines answers to scores")
    add(
        "--policy",
        metavar="NAME",
        help="places the rows of a request: columns `place` and `dropped` (needs --group-by)",
    )
    add("--policies", type=Path, metavar="FILE", help="that has --policy (default: policies.yaml of the model)")
    add(
        "--engine",
        choices=["auto", "torchscript", "compiled"],
        default="auto",
        help="auto (default): a compiled package where there is one and rows are grouped, otherwise TorchScript",
    )
    add("--processes", type=int, help="worker processes, one core each (default: the cores)")
    add("--rows-per-part", type=int, default=200_000, help="rows of an output file (default 200000)")
    add("--max-bad-rows", type=int, default=0, help="so many bad rows are left without score, not refused")
    add("--verify-key", type=Path, metavar="FILE", help="score only by what one of these keys signed")


def _score(options: argparse.Namespace) -> None:
    from training.files import output_path
    from training.score.job import Job
    from training.score.run import score

    for name in ("processes", "rows_per_part"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}: at least 1, got {getattr(options, name)}")
    job = Job.of(
        options.version,
        options.input,
        output_path(options.out),
        columns=[name for name in options.columns.split(",") if name],
        prefix=options.prefix,
        group_by=options.group_by,
        value_model=options.value_model,
        policy=options.policy,
        policies_file=options.policies,
        engine=options.engine,
        verify_key=options.verify_key,
        max_bad_rows=options.max_bad_rows,
    )
    score(job, processes=options.processes or len(os.sched_getaffinity(0)), rows_per_part=options.rows_per_part)
