"""`python -m service ship`: copies the closed files of both logs to a URL, once, or for as long as its starter lives.

In: the folders of the logs, and FEEDRANK_SHIP, as a URL may hold a secret and a command line is no place for one. Out:
copies (service/ship/copying.py). By hand it makes one pass, and the exit status is 1 where that failed. The service
starts it with --watch: it goes on until standard input closes, tries again after a failure with pauses that double,
and says on standard output, in lines of JSON, what it has shipped and what failed. A process of its own: clients of
object stores have threads, memory and faults that stay out of the process that serves.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from service.log_files.folder import LogFolder
from service.log_files.shipped import unshipped
from service.ship.copying import Copying
from service.ship.destination import Destination
from service.ship.folders import PREFIXES, VARIABLE, locked_folder

_POLL_SECONDS = 2.0
_MOST_SECONDS = 60.0
# A store's client may hang for good. Then this process ends, and with it its lock, and another begins.
_STUCK_SECONDS = 1800.0
# For the last pass, once the starter is gone.
_END_SECONDS = 60.0
_NICENESS = 19
_REASON_CHARACTERS = 300

Say = Callable[[dict[str, Any]], None]


def main(arguments: Sequence[str]) -> int:
    """Ship. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m service ship", description=f"Copy the closed files of both logs to the URL in {VARIABLE}."
    )
    parser.add_argument("--impression-log", metavar="DIR", type=Path, help="folder of the impression log")
    parser.add_argument("--event-log", metavar="DIR", type=Path, help="folder of the event log")
    parser.add_argument("--watch", action="store_true", help="go on until standard input closes")
    options = parser.parse_args(arguments)
    folders = {"impressions": options.impression_log, "events": options.event_log}
    logs = {name: LogFolder(path, PREFIXES[name]) for name, path in folders.items() if path is not None}
    url = os.environ.get(VARIABLE)
    if not logs or not url:
        parser.error(f"give --impression-log or --event-log, and {VARIABLE}")
    os.nice(_NICENESS)
    os.umask(0o077)  # a copy on a disk is read by its owner alone, as the log is
    if options.watch:  # its starter has the lock, and this process inherits it
        _watch(url, logs)
        return 0
    return _ship_once(url, logs)


def _ship_once(url: str, logs: dict[str, LogFolder]) -> int:
    failed = False
    try:
        with _locked(next(iter(logs.values())).path):
            for name, log in logs.items():
                waiting = len(unshipped(log.whole_files()))
                try:
                    _copying(url, name, log, lambda _: None).ship(is_last=True)
                except Exception as error:  # beside OSError each store's client has errors of its own
                    failed = True
                    print(f"{name}: {_reason(error)}", file=sys.stderr)
                print(f"{name}: {waiting - len(unshipped(log.whole_files()))} of {waiting} files shipped")
    except BlockingIOError:
        print("a service ships this folder; it needs no help", file=sys.stderr)
        return 1
    return int(failed)


def _watch(url: str, logs: dict[str, LogFolder]) -> None:
    is_over = threading.Event()
    threading.Thread(target=_wait_for_end, args=(is_over,), daemon=True).start()
    progress = _Progress()
    threading.Thread(target=progress.end_where_stuck, daemon=True).start()

    def say(message: dict[str, Any]) -> None:
        progress.note()
        _say(message)

    copyings: dict[str, Copying] = {}
    failures = 0
    while True:
        is_last = is_over.is_set()
        has_failed = False
        progress.note()
        for name, log in logs.items():
            try:
                if name not in copyings:
                    copyings[name] = _copying(url, name, log, say)
                copyings[name].ship(is_last=is_last)
            except Exception as error:  # beside OSError each store's client has errors of its own
                has_failed = True
                _say({"log": name, "failed": _reason(error)})
        if is_last:
            return
        failures = failures + 1 if has_failed else 0
        is_over.wait(min(_MOST_SECONDS, _POLL_SECONDS * 2**failures) if failures < 10 else _MOST_SECONDS)


def _copying(url: str, name: str, log: LogFolder, say: Say) -> Copying:
    told = partial(say, {"log": name, "shipped": 1})
    return Copying(log, Destination(url, name), is_converted=name == "impressions", on_shipped=told)


def _wait_for_end(is_over: threading.Event) -> None:
    sys.stdin.buffer.read()
    is_over.set()
    time.sleep(_END_SECONDS)
    os._exit(1)


class _Progress:
    """When something was copied last, or a pass begun."""

    def __init__(self) -> None:
        self.note()

    def note(self) -> None:
        self._noted_at = time.monotonic()

    def end_where_stuck(self) -> None:
        while (left := self._noted_at + _STUCK_SECONDS - time.monotonic()) > 0:
            time.sleep(left)
        os._exit(1)


def _say(message: dict[str, Any]) -> None:
    with suppress(BrokenPipeError):  # the starter was killed, and the last pass is not to stop for that
        print(json.dumps(message), flush=True)


def _reason(error: Exception) -> str:
    """Failure in one line without the URL, which may hold a secret."""
    text = str(getattr(error, "strerror", None) or error).partition("\n")[0]
    url = os.environ.get(VARIABLE, "")
    return f"{type(error).__name__}: {text.replace(url, VARIABLE)}"[:_REASON_CHARACTERS]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = locked_folder(folder)
    try:
        yield
    finally:
        os.close(descriptor)
