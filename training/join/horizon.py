"""The horizon of both logs: every line before it is in a closed file.

In: the watermarks that live writers publish (service/log_files/watermark.py): `<name>.watermark`, a JSON object
`{"writer", "watermark", "written"}` with times in RFC 3339. Out: the time that all of them have passed. A writer that
has not written for 10 minutes is silent. It is named, and holds the horizon until `until` says that nothing earlier
will come from it. A log without a watermark has no live writer: all of its lines are in closed files.
"""

import logging
from datetime import datetime, timedelta

import msgspec

from training.join.plan import micros, time_of
from training.join.sources import Source

log = logging.getLogger(__name__)

SUFFIX = ".watermark"
SILENT = timedelta(minutes=10)


class _Watermark(msgspec.Struct):
    writer: str
    watermark: datetime
    written: datetime


_decoder = msgspec.json.Decoder(_Watermark)


def horizon_of(sources: list[Source], now: datetime, until: datetime | None) -> int:
    """The horizon in microseconds, at most `now`. Raises ValueError for a watermark that cannot be read."""
    passed_by: list[int] = []
    for source in sources:
        for name in source.names_ending(SUFFIX):
            content = source.read_small(name)
            if content is None:  # its writer has just ended
                continue
            mark = _read(content, f"{source.place}/{name}")
            passed = micros(mark.watermark)
            if now - mark.written > SILENT:
                silent = f"{source.place}: writer {mark.writer} has been silent since {mark.written.isoformat()}"
                if until is None:
                    log.warning(
                        "%s and holds its hours open from %s; where nothing earlier will come from it, give --until",
                        silent,
                        mark.watermark.isoformat(),
                    )
                else:
                    log.warning("%s; taken to have nothing before %s", silent, until.isoformat())
                    passed = max(passed, micros(until))
            passed_by.append(passed)
    # Where writers live, `until` speaks for the silent ones alone.
    without_writers = now if until is None else until
    return min(micros(now), *(passed_by or [micros(without_writers)]))


def _read(content: bytes, place: str) -> _Watermark:
    try:
        mark = _decoder.decode(content)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{place}: no watermark of a writer ({error}); remove it where no service writes it") from None
    if mark.watermark.tzinfo is None or mark.written.tzinfo is None:
        raise ValueError(f"{place}: a time without its zone")
    return mark


def shown_time(microseconds: int) -> str:
    """A time as messages have it."""
    return time_of(microseconds).isoformat(timespec="seconds").replace("+00:00", "Z")
