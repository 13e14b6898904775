"""Command of this room: `python -m training rolling STEP FILE`. What a step needs is imported when it runs."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.rolling.choosing import Trials

# Adds a command and returns what adds its arguments.
AddCommand = Callable[[str, Callable[[argparse.Namespace], None], str], Callable[..., argparse.Action]]
STEPS = ("choose", "show", "freeze", "read")


def add_command(command: AddCommand) -> None:
    """Add the command."""
    add = command("rolling", _rolling, "compare methods on rolling days, and confirm the choice on a later day")
    add("step", choices=STEPS, help="choose: run the trials; show: report them; freeze: keep what they chose; read")
    add("file", type=Path, metavar="FILE", help="the comparison's file; for read the frozen file")
    add("--out", type=Path, metavar="FROZEN", help="freeze: the new file, which is then committed")
    add("--leaks", metavar="WORDS", help="freeze: how leaks were looked for, where a choice is implausibly far ahead")
    add("--again", metavar="WORDS", help="read: why the test day is read a second time")
    add("--processes", type=int, help="runs at once (default: the file's)")
    add("--trials", type=int, help="choose: trials of every method (default: the file's)")


def _rolling(options: argparse.Namespace) -> None:
    _refuse_others(options)
    if options.step == "choose":
        _choose(options)
    elif options.step == "show":
        _show(options)
    elif options.step == "freeze":
        _freeze(options)
    else:
        _read(options)


def _refuse_others(options: argparse.Namespace) -> None:
    """Raise ValueError for an option of another step."""
    steps = {"out": ("freeze",), "leaks": ("freeze",), "again": ("read",), "processes": ("choose", "read")}
    for name, allowed in (steps | {"trials": ("choose",)}).items():
        if getattr(options, name) is not None and options.step not in allowed:
            raise ValueError(f"--{name} belongs to rolling {allowed[0]}, not to rolling {options.step}")


def _choose(options: argparse.Namespace) -> None:
    from training.rolling.choosing import choose
    from training.rolling.rolling_file import load_rolling

    trials = choose(load_rolling(options.file, _changes(options)))
    _report(trials)


def _show(options: argparse.Namespace) -> None:
    from training.rolling.choosing import Trials
    from training.rolling.rolling_file import load_rolling

    _report(Trials(load_rolling(options.file, {})))


def _report(trials: "Trials") -> None:
    from training.compare.document import write_document
    from training.compare.report import print_blocks
    from training.rolling.choice_report import choice_blocks

    blocks = list(choice_blocks(trials))
    print_blocks(blocks)
    print(write_document(trials.file.output, trials.file.name, blocks))


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    """Top-level keys that options replace. Raises ValueError for a file without the search that --trials changes."""
    from model.strict_yaml import read_yaml

    changes: dict[str, Any] = {} if options.processes is None else {"processes": options.processes}
    if options.trials is not None:
        content = read_yaml(options.file)
        search = content.get("search") if isinstance(content, dict) else None
        if not isinstance(search, dict):
            raise ValueError(f"--trials {options.trials}: {options.file} has no search block")
        changes["search"] = search | {"trials": options.trials}
    return changes


def _freeze(options: argparse.Namespace) -> None:
    from training.rolling.frozen import freeze

    if options.out is None:
        raise ValueError("--out: names the frozen file, which is committed before the test day is read")
    frozen = freeze(options.file, options.out, options.leaks)
    print(f"{options.out}: {frozen.chosen}; commit it, then run `python -m training rolling read {options.out}`")


def _read(options: argparse.Namespace) -> None:
    from training.rolling.reading import read

    print(read(options.file, options.again, options.processes))
