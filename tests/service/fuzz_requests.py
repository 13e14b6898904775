"""Requests that are nearly right, from a seed: bodies by their tokens, headers, framing, and how the bytes arrive.

In: a seed. Out: exchanges, each what one client sends on one connection. Values near what is right find more than
noise does: right names, wrong types, edges of int64 and of floats, lengths that are off by one.
"""

import gzip
import json
import random
import re
import zlib
from dataclasses import dataclass
from itertools import pairwise

from tests.artifacts import TINY_REQUEST
from tests.service.open_inference.tensors import HEADER_LENGTH, INFER, Given, binary_body, tensors_of

_ROWS = [
    {
        "id": identifier,
        "features": {name: column[place] for name, column in TINY_REQUEST["candidates"]["features"].items()},
    }
    for place, identifier in enumerate(TINY_REQUEST["candidates"]["id"])
]
_TENSORS = [tensor.as_json() for tensor in tensors_of(TINY_REQUEST)]
_MORE = {"request_id": "r-1", "model": "tiny", "version": "1", "value_model": "default", "top_k": 2, "explain": True}
_RANKED = [TINY_REQUEST, {**TINY_REQUEST, **_MORE}, {**TINY_REQUEST, "candidates": _ROWS}]
_INFERRED = [
    {"inputs": _TENSORS},
    {"id": "r-1", "inputs": _TENSORS, "parameters": {"value_model": "default", "binary_data_output": True}},
    {"inputs": _TENSORS[-2:], "outputs": [{"name": "score", "parameters": {"binary_data": True}}]},
]
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null|[\[\]{},:]')
_VALUES = (
    *("null", "true", "false", "0", "1", "-1", "2", "3.5", "1e308", "-1e308", "1e-320", "1e999", "NaN", "Infinity"),
    *(str(2**31), str(2**53 + 1), str(2**63 - 1), str(2**63), str(-(2**63)), str(-(2**63) - 1), str(10**400)),
    *('""', '" "', '"a"', '"7"', '"de"', '"\\u0000"', '"\\ud800"', '"\\ud83d\\ude00"', '"' + "x" * 300 + '"'),
    *("[]", "{}", "[[]]", "[null]", "[1,2]", '{"a":1}', "[" * 60 + "]" * 60, "[" + "1," * 999 + "1]"),
    *('"user"', '"candidates"', '"features"', '"id"', '"inputs"', '"data"', '"shape"', '"datatype"', '"name"'),
    *(
        '"strict"',
        '"video_id"',
        '"position"',
        '"tiny"',
        '"score"',
        '"click"',
        '"history.lengths"',
        '"BYTES"',
        '"INT64"',
    ),
)
_PATHS = (
    *(
        "/v1/models",
        "/v1/models/tiny",
        "/v1/models/%00",
        "/healthz",
        "/readyz",
        "/v2",
        "/v2/health/ready",
        "/v2/models/tiny",
    ),
    *(
        "/v2/models/tiny/versions/1/infer",
        "/v2/models/tiny/versions/x/infer",
        "/v2/models/%ff/infer",
        "/v1/rank/",
        "/v1/rank?x=1",
    ),
    *(
        "//v1/rank",
        "/v1/%72ank",
        "http://x/v1/rank",
        "*",
        "/v1/admin/models/tiny/labels",
        "/v1/rank:batch",
        "/" + "a" * 3000,
    ),
    *("/v1/rank#f", "/\x7f", "/\xe9", "x", "", "/v2/models/tiny/ready", "/nothing", "/static-offline-docs/x"),
)
_HEADERS = (
    *(
        b"X-Request-Id: abc",
        b"X-Request-Id:   ",
        b"X-Request-Id: " + b"y" * 200,
        b"X-Request-Id: \xff\xfe",
        b"X-Request-Id: a\tb",
    ),
    *(
        b"X-Request-Timeout-Ms: 1000000 ",
        b"X-Request-Timeout-Ms: 1",
        b"X-Request-Timeout-Ms: 0",
        b"X-Request-Timeout-Ms: -1",
    ),
    *(
        b"X-Request-Timeout-Ms: \xb2",
        b"X-Request-Timeout-Ms: 1e3",
        b"Content-Type: text/plain",
        b"Content-Type: application/json",
    ),
    *(
        b"Content-Encoding: gzip",
        b"Content-Encoding: br",
        b"Content-Encoding: identity",
        b"Content-Encoding: gzip, gzip",
    ),
    *(
        b"Accept-Encoding: gzip",
        b"Accept: */*",
        b"Authorization: Bearer x",
        b"Authorization: Basic \xff",
        b"User-Agent: fuzz",
    ),
    *(
        b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        b"traceparent: 00-0-0-0",
        b"tracestate: \xff",
    ),
    *(
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEA",
        b"Upgrade: websocket\r\nConnection: upgrade",
    ),
    *(
        b"Connection: keep-alive",
        b"Upgrade: x",
        b"Empty:",
        b"X: " + b"z" * 5000,
        b"Cookie: a=b; c",
        b"Expect: 100-continue",
    ),
    *(
        HEADER_LENGTH.encode() + b": 10",
        HEADER_LENGTH.encode() + b": -1",
        b"X-Forwarded-Proto: https",
        b"Host: other.example",
    ),
)
# Within a limit of 20,000 bytes, and far beyond when they are unpacked.
_BOMBS = {b"gzip": gzip.compress(bytes(10_000_000)), b"deflate": zlib.compress(bytes(10_000_000))}
# Of a head that is no HTTP, or may not be answered.
_BROKEN = (
    *(
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Content-Length: 1\r\nContent-Length: 2",
        b"Content-Length: -1",
    ),
    *(
        b"Content-Length: +5",
        b"Content-Length: 0x5",
        b"Content-Length: 5, 5",
        b"Content-Length: 99999999999999999999999",
    ),
    *(
        b"Transfer-Encoding: chunked, gzip",
        b"Transfer-Encoding: xchunked",
        b" folded: x",
        b"No colon",
        b"Na me: x",
        b"X: a\x00b",
    ),
    *(b": x", b"X: a\rb", b"Content-Length : 4", b"X: " + b"z" * 70_000),
)
_LINES = (
    *(
        b"CONNECT x:443 HTTP/1.1",
        b"PRI * HTTP/2.0",
        b"GET / HTTP/9.9",
        b"GET  / HTTP/1.1",
        b"get / HTTP/1.1",
        b"GET /",
        b"\x16\x03\x01",
    ),
    *(
        b"POST /v1/rank HTTP/1.1 x",
        b"POST /v1/rank HTTP/1.1\x0b",
        b"GET / HTTP/1.1\nX: y",
        b"\x00",
        b"POST /v1/rank FTP/1.1",
    ),
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """Reads of a client: bytes, and how many requests are in them. Where `is_whole`, the framing of each is right: it
    gets one answer, and the connection is open then."""

    reads: tuple[bytes, ...]
    requests: int
    is_whole: bool


class Requests:
    """Exchanges of a seed, one after the other."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._templates = [(b"/v1/rank", _tokens(body)) for body in _RANKED]
        self._templates += [(INFER.encode(), _tokens(body)) for body in _INFERRED]
        self._binary = binary_body([Given("video_id", "INT64", [1, 2]), Given("tag", "BYTES", ["x", "y"])])

    def exchange(self) -> Exchange:
        """The next one."""
        draw = self._draw
        requests = draw.choice((1, 1, 1, 2, 3, 8))
        stream = b"".join(self._request() for _ in range(requests))
        is_whole = draw.random() < 0.8
        if not is_whole:
            requests += 1
            stream += self._broken()
        return Exchange(self._reads(stream), requests, is_whole)

    def _request(self) -> bytes:
        draw = self._draw
        path, body, headers = self._body()
        method = b"POST"
        if draw.random() < 0.1:
            path = draw.choice(_PATHS[:18]).encode("latin-1") if draw.random() < 0.9 else b"/metrics"
            method = draw.choice((b"POST", b"GET", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"))
        if path in (b"*", b""):  # is no address, and ends the connection
            path = b"/"
        headers += draw.choices(_HEADERS, k=draw.choice((0, 0, 1, 2, 4)))
        if draw.random() < 0.1:
            encoding, compress = draw.choice(((b"gzip", gzip.compress), (b"deflate", zlib.compress)))
            body = compress(body) if draw.random() < 0.95 else _BOMBS[encoding]
            headers.append(b"Content-Encoding: " + encoding)
        head = b"%b %b HTTP/1.1\r\nHost: x\r\n" % (method, path)
        if draw.random() < 0.8:
            return head + b"\r\n".join([*headers, b"Content-Length: %d" % len(body), b"", body])
        return head + b"\r\n".join([*headers, b"Transfer-Encoding: chunked", b"", self._chunked(body)])

    def _body(self) -> tuple[bytes, bytes, list[bytes]]:
        draw = self._draw
        if draw.random() < 0.05:
            body, headers = self._binary
            return INFER.encode(), self._changed(body), [f"{name}: {value}".encode() for name, value in headers.items()]
        path, tokens = draw.choice(self._templates)
        tokens = tokens.copy()
        for _ in range(draw.choice((0, 1, 1, 2, 3))):
            at = draw.randrange(len(tokens))
            kind = draw.random()
            if kind < 0.85:
                while tokens[at] in "[]{},:":
                    at = draw.randrange(len(tokens))
                tokens[at] = draw.choice(_VALUES)
            elif kind < 0.9:
                del tokens[at]
            elif kind < 0.95:
                tokens.insert(at, tokens[draw.randrange(len(tokens))])
            else:
                tokens[at : at + 1] = draw.choices(_VALUES, k=2)
        body = "".join(tokens).encode("utf-8", "surrogatepass")
        if draw.random() < 0.1:
            body = self._changed(body) if draw.random() < 0.5 else body.ljust(30_000)
        return path, body, []

    def _changed(self, body: bytes) -> bytes:
        changed = bytearray(body)
        for _ in range(self._draw.randint(0, 3)):
            at = self._draw.randrange(len(changed) + 1)
            changed[at : at + self._draw.randint(0, 3)] = self._draw.randbytes(self._draw.randint(0, 3))
        return bytes(changed)

    def _chunked(self, body: bytes) -> bytes:
        draw = self._draw
        parts = []
        while body:
            size = draw.choice((1, 7, 100, 5000))
            chunk, body = body[:size], body[size:]
            parts.append(b"%x%b\r\n%b\r\n" % (len(chunk), draw.choice((b"", b"", b";x", b';a="b;c"')), chunk))
        trailers = draw.choice((b"", b"", b"", b"X-T: 1\r\n", b"Authorization: x\r\nUpgrade: y\r\nHost: z\r\n"))
        return b"".join([*parts, b"0\r\n", trailers, b"\r\n"])

    def _broken(self) -> bytes:
        """A request whose framing is wrong, or that ends early, or garbage."""
        draw = self._draw
        kind = draw.random()
        if kind < 0.3:
            head = b"POST /v1/rank HTTP/1.1\r\nHost: x\r\n"
            return head + draw.choice(_BROKEN) + b"\r\n\r\n" + draw.choice((b"", b"abcde", b"5\r\nabcde\r\n0\r\n\r\n"))
        if kind < 0.45:
            return draw.choice(_LINES) + b"\r\n\r\n" + draw.randbytes(draw.randint(0, 20))
        if kind < 0.55:
            path = draw.choice(_PATHS).encode("latin-1", "replace")
            return b"%b %b HTTP/1.%d\r\nConnection: close\r\n\r\n" % (
                draw.choice((b"GET", b"POST")),
                path,
                draw.randint(0, 1),
            )
        request = self._request()
        if kind < 0.8:
            return request[: draw.randrange(1, len(request))]
        return self._changed(request) if kind < 0.95 else request.replace(b"\r\n", b"\n")

    def _reads(self, stream: bytes) -> tuple[bytes, ...]:
        draw = self._draw
        kind = draw.random()
        if kind < 0.5 or len(stream) < 2:
            return (stream,)
        if kind < 0.52 and len(stream) < 3000:
            return tuple(stream[at : at + 1] for at in range(len(stream)))
        cuts = sorted({0, len(stream), *(draw.randrange(1, len(stream)) for _ in range(draw.randint(1, 5)))})
        return tuple(stream[start:end] for start, end in pairwise(cuts))


def _tokens(body: object) -> list[str]:
    return _TOKEN.findall(json.dumps(body))
