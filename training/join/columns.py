"""Columns of times as microseconds since 1970, in UTC.

Shapes: B rows.
"""

from datetime import datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training.join.plan import micros


def times(values: pa.Array) -> tuple[pa.Array, NDArray[np.bool_]]:
    """Microseconds of times in RFC 3339 or of timestamps (UTC unless they have a zone), and which are no times."""
    if not pa.types.is_string(values.type):
        return values.cast(pa.int64()), np.zeros(len(values), bool)
    try:
        return values.cast(pa.timestamp("us", "UTC")).cast(pa.int64()), np.zeros(len(values), bool)
    except pa.ArrowInvalid:
        found = [_time(text) for text in values.to_pylist()]
        is_wrong_B = np.array([time is False for time in found])
        return pa.array([None if time is False else time for time in found], pa.int64()), is_wrong_B


def _time(text: str | None) -> int | bool | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
        return micros(time) if time.tzinfo is not None else False
    except (ValueError, OverflowError):
        return False
