"""Commands of the cycle: `python -m training daily`, `judge` and `journal`.

In: the command line. Out: a line that says how a night ended, or the journal for people. What each needs is imported
when it runs.
"""

import argparse
import getpass
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

# Adds a command and returns what adds its arguments.
AddCommand = Callable[[str, Callable[[argparse.Namespace], None], str], Callable[..., argparse.Action]]


def add_commands(command: AddCommand) -> None:
    """Add the commands of this room."""
    add = command("daily", _daily, "join, judge, gate, train, publish and label: one night of a cycle's file")
    add("file", type=Path, metavar="FILE", help="the cycle's file, daily.yaml")
    add("--now", type=_time, metavar="TIME", help="the time that it takes for now (default: the clock's)")
    add("--pause", action="store_true", help="join alone from now on, and decide nothing")
    add("--resume", action="store_true", help="go on after a pause")
    add("--release", type=_day, metavar="DAY", help="let a quarantined day back into the windows")

    add = command("judge", _judge, "judge the canary of a cycle's file, and nothing else")
    add("file", type=Path, metavar="FILE", help="the cycle's file, daily.yaml")
    add("--now", type=_time, metavar="TIME", help="the time that it takes for now (default: the clock's)")

    add = command("journal", _journal, "print the decisions about a model")
    add("models", type=Path, metavar="MODELS", help="the models folder that a service reads")
    add("name", metavar="NAME", help="the model's name")
    add("--last", type=int, metavar="N", help="the last N decisions (default: all)")


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected a time as 2026-11-30T02:30:00Z") from None
    if time.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text}: has no time zone; write it in UTC, as 2026-11-30T02:30:00Z")
    return time.astimezone(UTC)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected a day as 2026-11-30") from None


def _daily(options: argparse.Namespace) -> None:
    from training.daily.by_hand import pause, release, resume
    from training.daily.cycle import run_cycle
    from training.daily.cycle_file import Cycle

    given = [name for name in ("pause", "resume", "release") if getattr(options, name)]
    if len(given) > 1:
        raise ValueError(f"--{given[0]} and --{given[1]}: give one of them")
    cycle = Cycle.load(options.file)
    now = options.now or datetime.now(UTC)
    if given:
        if options.release is not None:
            print(release(cycle.folder, now, _who(), options.release))
        else:
            print((pause if options.pause else resume)(cycle.folder, now, _who()))
        return
    print(run_cycle(cycle, now))


def _judge(options: argparse.Namespace) -> None:
    from training.daily.cycle import run_judge
    from training.daily.cycle_file import Cycle

    print(run_judge(Cycle.load(options.file), options.now or datetime.now(UTC)))


def _journal(options: argparse.Namespace) -> None:
    from training.daily.print_journal import journal_lines

    if options.last is not None and options.last < 1:
        raise ValueError(f"--last: at least 1, got {options.last}")
    for line in journal_lines(options.models, options.name, options.last):
        print(line)


def _who() -> str:
    try:
        return f"{getpass.getuser()}, by hand"
    except (KeyError, OSError):  # a container's user may have no name
        return "by hand"
