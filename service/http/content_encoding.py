"""Bodies that a client has compressed: which encodings are read, and their content.

In: a request's Content-Encoding and its body. Out: the body as it was before, under a limit of its unpacked size.
Raises Problem: 400 not what its encoding says, 413 over the limit, 415 an encoding that is not read.
"""

import zlib

from starlette.types import Scope

from service.base.errors import Fault, Problem
from service.http.middleware import content_length, header

_HEADER = "Content-Encoding"
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # x-gzip: RFC 9110, 8.4.1.3
_READ = "gzip, deflate"
_PLAIN = (None, "", "identity")


def encoding_of(scope: Scope) -> str | None:
    """The encoding of a request's body, None for one without. Raises Problem 415, also for several."""
    if header(scope, _HEADER) is None:
        return None
    given = ",".join(value.decode("latin-1") for name, value in scope["headers"] if name == b"content-encoding")
    encoding = given.strip().lower()
    if encoding in _PLAIN:
        return None
    if encoding not in _WINDOW_BITS:
        raise not_read(f"the body's {_HEADER} is not read; send it as it is, or as one of {_READ}")
    return encoding


def size_of(scope: Scope) -> int | None:
    """The announced size of the body, None where the client does not say, or compressed it: it may be any then."""
    return content_length(scope) if header(scope, _HEADER) in _PLAIN else None


def not_read(detail: str) -> Problem:
    """415."""
    return Problem(415, detail, headers={"Accept-Encoding": _READ})


def unpacked(body: bytes, encoding: str, limit: int) -> bytes:
    """The body before `encoding`, one of `encoding_of`. Never more than `limit` bytes are made of it."""
    stream = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error:
        raise _wrong(f"the body is not what its {_HEADER} says, {encoding}") from None
    if len(plain) > limit:
        detail = f"the body is over the limit of {limit} bytes once decompressed; send fewer candidates"
        raise Problem(413, detail, reason="body_too_large")
    if not stream.eof or stream.unused_data:
        raise _wrong(f"the body ends before its {encoding} does, or after it")
    return plain


def _wrong(detail: str) -> Problem:
    return Problem(400, detail, faults=[Fault("$", detail)])
