"""A bare ASGI application that takes events: decodes them, appends the body to a file, answers.

In: BARE_EVENTS, the file. Out: `app`, with POST /v1/events. It checks, counts and syncs nothing: a bound, no service.
"""

import os

import msgspec
from starlette.types import Receive, Scope, Send

_decoder = msgspec.json.Decoder()
_file = os.open(os.environ["BARE_EVENTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """One ASGI connection."""
    if scope["type"] != "http":
        return
    chunks = []
    while True:
        message = await receive()
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            break
    body = b"".join(chunks)
    accepted = 0
    if body:
        accepted = len(_decoder.decode(body)["events"])
        os.write(_file, body + b"\n")
    answer = b'{"accepted": %d}' % accepted
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    # Without a body it is asked whether it is there.
    await send({"type": "http.response.start", "status": 202 if body else 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
