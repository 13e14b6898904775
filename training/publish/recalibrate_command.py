"""Options of `python -m training recalibrate`, and the job that they ask for, which is imported when it runs."""

import argparse
from collections.abc import Callable
from datetime import date
from pathlib import Path


def add_arguments(add: Callable[..., argparse.Action]) -> None:
    """Add the command's arguments, but for the key that signs."""
    add("version", type=Path, metavar="VERSION", help="its folder, models/NAME/VERSION")
    add("data", metavar="DATA", nargs="?", help="a log with its features and labels, any path of fsspec")
    add("--days", type=int, default=1, help="calendar days of the data (default 1)")
    add("--end", default="latest", metavar="DAY", help="the last of them (default: the newest whole day)")
    add("--exclude", action="append", default=[], metavar="DAY", help="leave a day out; may be given again")
    add("--column", default="date", help="the column of days (default date)")
    add("--timezone", default="UTC", help="whose days they are, in a column of timestamps (default UTC)")
    add("--weight", metavar="COLUMN", help="row weights (default: of joined rows _weight, else every row counts once)")
    add("--kind", choices=["isotonic", "platt"], help="of the maps of probabilities (default: as exported, else platt)")
    add("--even-if-judged", action="store_true", help="although the version is judged as, or against, a canary")
    add("--undo", action="store_true", help="publish the calibration that the version was exported with again")


def run(options: argparse.Namespace) -> None:
    """Publish the generation that the options ask for, and print its folder. Raises ValueError."""
    from model.artifact.artifact import versions
    from model.artifact.signature import SigningKey
    from training.publish.recalibrate import Days, own_again, recalibrate

    if options.undo == (options.data is not None):
        raise ValueError("recalibrate: give DATA to fit a calibration on, or --undo to go back to the version's own")
    if there := versions(options.version.parent, options.version.name):
        name = options.version.name
        raise ValueError(
            f"{options.version}: is the folder of model {name}, and a calibration is one version's; name "
            f"{options.version / str(there[-1])}, or another of {', '.join(map(str, there))}"
        )
    key = None if options.sign_key is None else SigningKey(options.sign_key)
    if options.undo:
        print(own_again(options.version, sign_key=key, even_if_judged=options.even_if_judged))
        return
    end = options.end if options.end == "latest" else _day_of("--end", options.end)
    exclude = frozenset(_day_of("--exclude", day) for day in options.exclude)
    rows = Days(options.days, end, options.column, options.timezone, exclude, options.weight)
    print(
        recalibrate(
            options.version,
            options.data,
            rows,
            kind=options.kind,
            sign_key=key,
            even_if_judged=options.even_if_judged,
        )
    )


def _day_of(option: str, text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{option}: expected a day as 2024-01-31 or 20240131, got {text[:40]!r}") from None
