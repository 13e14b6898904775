"""The body of a request under limits: its bytes and its time.

In: an ASGI request. Out: its body, or a Problem, or ClientDisconnect where the client leaves before its request is
whole.
"""

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from service.base.errors import Problem
from service.http.content_encoding import encoding_of, not_read
from service.http.middleware import content_length
from service.http.protocol import IS_SLOW, IS_WHOLE, NO_ROOM


async def read_body_in_time(scope: Scope, receive: Receive, limit: int, seconds: float) -> bytes:
    """The body, if it keeps the limits. Raises Problem 408 or 413, ClientDisconnect."""
    if IS_WHOLE in scope:
        return await _read_body(scope, receive, limit)
    try:
        async with asyncio.timeout(0 if IS_SLOW in scope else seconds):
            return await _read_body(scope, receive, limit)
    except TimeoutError:
        raise Problem(408, f"the body took more than {seconds:g} s to arrive", reason="slow_body") from None


async def read_plain_body(scope: Scope, receive: Receive, limit: int, seconds: float) -> bytes:
    """The same with bodies of any encoding. Also raises Problem 415."""
    if encoding_of(scope) is not None:
        raise not_read("the body is compressed; send it here as it is")
    return await read_body_in_time(scope, receive, limit, seconds)


async def _read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The body, if it keeps the limit: no more than `limit` bytes are ever kept. Raises Problem, ClientDisconnect."""
    chunks: list[bytes] = []
    size = content_length(scope) or 0
    if size <= limit:
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            if NO_ROOM in scope:
                detail = "unfinished requests take too much memory together; try again"
                raise Problem(429, detail, reason="no_room", retry_after=1)
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                break
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    detail = f"the body is over the limit of {limit} bytes; send fewer candidates"
    raise Problem(413, detail, reason="body_too_large")
