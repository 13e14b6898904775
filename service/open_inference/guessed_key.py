"""Key of an inference request's user, found before the request is parsed, so that the look-up of the user begins early.

In: the body, and which feature is the key. Out: the key that the first tensor of that name seems to have. It may be
wrong. The parsed request decides, and makes another look-up then.
"""

import json
import re
import struct
from contextlib import suppress
from functools import lru_cache

from service.state.user_state import canonical_key

_TENSOR_BYTES = 1_000
_decoder = json.JSONDecoder()
_SIZE = re.compile(rb'"binary_data_size"\s*:\s*([0-9]{1,9})')


def guessed_key(body: bytes, header_length: str | None, key: str) -> str | None:
    """The canonical key of a body's user, None where none is found. `header_length`: bytes of its JSON, as sent."""
    with suppress(ValueError, TypeError, LookupError, RecursionError, struct.error):
        size = len(body) if header_length is None else int(header_length)
        found = _name_pattern(key).search(body, 0, size)
        if found is not None:
            start = body.rfind(b"{", 0, found.start())
            tensor, _ = _decoder.raw_decode(body[start : min(start + _TENSOR_BYTES, size)].decode())
            (value,) = tensor["data"] if "data" in tensor else [_raw_value(tensor, body, start, size)]
            return canonical_key(value)
    return None


def _raw_value(tensor: dict[str, object], body: bytes, start: int, size: int) -> object:
    """The value of a tensor of one INT64 or BYTES, whose bytes come after those of the tensors before `start`."""
    begin = size + sum(int(before) for before in _SIZE.findall(body, 0, start))
    if tensor["datatype"] == "INT64":
        return struct.unpack("<q", body[begin : begin + 8])[0]
    (length,) = struct.unpack("<I", body[begin : begin + 4])
    return body[begin + 4 : begin + 4 + length].decode()


@lru_cache(maxsize=64)
def _name_pattern(key: str) -> "re.Pattern[bytes]":
    return re.compile(rb'"name"\s*:\s*"%b"' % re.escape(key.encode()))
