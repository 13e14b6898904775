"""Log lines: one JSON object each, to stderr.

In: standard logging records. Fields beside the message come as `extra={"fields": {...}}`. Out: lines with `time` (UTC),
`level`, `logger`, `message` and the fields. Warnings, uncaught exceptions and what else is printed become log lines
too. Nothing waits for the reader of stderr (service/base/log_queue.py).
"""

import atexit
import io
import logging
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from types import TracebackType
from typing import Any

import msgspec

from service.base.log_queue import LogQueue

LOGGER = "feedrank"
_MOST_PRINTED = 2**16
_THROTTLE_SECONDS = 60.0

# Unix time, and the fields.
LogLine = tuple[float, Mapping[str, object]]


class JsonFormatter(logging.Formatter):
    """A logging record as lines of JSON: one, or those that it has."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines, without the last one's end."""
        common: dict[str, Any] = {
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[1] is not None:
            common["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        lines: Sequence[LogLine] | None = getattr(record, "lines", None)
        if lines is None:
            lines = ((record.created, getattr(record, "fields", {})),)
        return "\n".join(
            msgspec.json.encode({"time": _time(created), **common, **fields}).decode() for created, fields in lines
        )


def _time(created: float) -> str:
    """A time in ISO 8601, with milliseconds, in UTC."""
    fraction, whole = math.modf(created)
    carried, microseconds = divmod(round(fraction * 1e6), 1_000_000)
    return f"{_second(int(whole) + carried)}.{microseconds // 1000:03d}+00:00"


@lru_cache(maxsize=4)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class QueuedHandler(logging.Handler):
    """Puts records into the queue of this process's stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Queues the record's lines."""
        try:
            for line in self.format(record).encode("utf-8", "backslashreplace").splitlines(keepends=True):
                stderr_queue().put(line if line.endswith(b"\n") else line + b"\n")
        except Exception:
            self.handleError(record)


class FieldLogger:
    """A logger that takes the fields of a line as keywords: `log.error("worker died", pid=7)`."""

    def __init__(self, name: str = "") -> None:
        self._logger = logging.getLogger(f"{LOGGER}.{name}" if name else LOGGER)

    def info(self, message: str, /, **fields: object) -> None:
        """Log what went as it should."""
        self._logger.info(message, extra={"fields": fields})

    def all_at(self, level: int, message: str, lines: Sequence[LogLine]) -> None:
        """Log lines of one message together: a call of logging costs more than a line."""
        if lines and self._logger.isEnabledFor(level):
            self._logger.log(level, message, extra={"lines": lines})

    def warning(self, message: str, /, **fields: object) -> None:
        """Log a warning: an operator may want to act."""
        self._logger.warning(message, extra={"fields": fields})

    def error(self, message: str, /, **fields: object) -> None:
        """Log an error: an operator has to act."""
        self._logger.error(message, extra={"fields": fields})

    def fault(self, message: str, error: Exception, /, **fields: object) -> None:
        """Log an error, with its traceback where it is none of those that the code raises for the user."""
        trace = None if isinstance(error, ValueError) else error
        self._logger.error(message, extra={"fields": fields}, exc_info=trace)

    def exception(self, message: str, error: BaseException | None = None, /, **fields: object) -> None:
        """Log an exception with its traceback, the one that is being handled where none is given."""
        self._logger.error(message, extra={"fields": fields}, exc_info=error or True)


class Throttle:
    """True at most once a minute, for lines that would fill a log. Its caller keeps threads apart."""

    def __init__(self) -> None:
        self._due = -math.inf

    def is_due(self) -> bool:
        """True the first time and a minute after each time that it was."""
        now = time.monotonic()
        is_due = now >= self._due
        if is_due:
            self._due = now + _THROTTLE_SECONDS
        return is_due


@cache
def stderr_queue() -> LogQueue:
    """The one way to stderr of this process, or to nowhere, where it was started without one."""
    stderr = sys.__stderr__
    return LogQueue(os.open(os.devnull, os.O_WRONLY) if stderr is None else stderr.fileno(), _dropped_line)


def _dropped_line(dropped: int) -> bytes:
    return _line("log", "log lines were dropped: the reader of stderr is too slow", dropped=dropped)


def _line(name: str, message: str, **fields: object) -> bytes:
    """A line that no logger makes: none may be configured, or one may itself print."""
    record = {"name": f"{LOGGER}.{name}", "levelname": "WARNING", "msg": message, "fields": fields}
    return JsonFormatter().format(logging.makeLogRecord(record)).encode("utf-8", "backslashreplace") + b"\n"


class _Printed(io.TextIOBase):
    """Printed text as log lines."""

    encoding = "utf-8"

    def __init__(self, name: str, descriptor: int) -> None:
        self._name = name
        self._descriptor = descriptor
        self._lock = threading.RLock()
        self._rest = ""

    def write(self, text: str) -> int:
        """Log every whole line of what is written, and a part of one that becomes too long."""
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            if len(self._rest) > _MOST_PRINTED:
                lines, self._rest = [*lines, self._rest], ""
        for line in filter(str.strip, lines):
            stderr_queue().put(_line(self._name, line))
        return len(text)

    def fileno(self) -> int:
        """The descriptor, for processes that inherit it."""
        return self._descriptor


def log_all() -> None:
    """Send everything that this process prints the way of log lines, and flush the queue at its end."""
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.stdout, sys.stderr = _Printed("stdout", 1), _Printed("stderr", 2)
    atexit.register(stderr_queue().flush)


def _log_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is not None and not issubclass(kind, SystemExit):
        logging.getLogger(LOGGER).critical("an uncaught exception", exc_info=(kind, error, trace))


def spare_unwritten_fields() -> None:
    """Spare logging the look-up of the caller, thread and process of a line, which nothing here writes and which cost a
    third of it. The switches are those that the logging HOWTO names."""
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def logging_config(level: str) -> dict[str, Any]:
    """The configuration of logging.config.dictConfig for the service and its HTTP server."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "service.base.log.JsonFormatter"}},
        "handlers": {"stderr": {"class": "service.base.log.QueuedHandler", "formatter": "json"}},
        # Libraries' own loggers: their remarks beside our calls.
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            name: {"handlers": ["stderr"], "level": level.upper(), "propagate": False}
            for name in (LOGGER, "uvicorn", "opentelemetry")
        },
    }
