"""`python -m service.impressions.parquet_tail FILE MOST BYTES`: last lines of a file of the log, as JSON.

In: a Parquet file, how many lines at most, and how many bytes of them. Out: lines on standard output, the last one
first. Arrow stays in this process. The exit status is 1 where the file is damaged, and standard error says why.
"""

import os
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import msgspec

from service.impressions.parquet import ParquetImpressions
from service.impressions.record import Line

_NICENESS = 19
_NULL = msgspec.Raw(b"null")


def main(arguments: Sequence[str]) -> int:
    """Write the lines. Returns the exit status."""
    file, (most, left_bytes) = Path(arguments[0]), map(int, arguments[1:])
    os.nice(_NICENESS)
    try:
        for line in islice(ParquetImpressions(file).lines_backwards(), most):
            if isinstance(line, Line) and line.hashes is not None:
                line.user = _NULL  # hashes stand for it
            text = msgspec.json.encode(line) + b"\n"
            left_bytes -= len(text)
            if left_bytes < 0:
                break
            sys.stdout.buffer.write(text)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
