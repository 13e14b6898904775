"""A request body -> its JSON, or a Problem that says where it is none."""

from typing import Any

import msgspec

from service.base.errors import Fault, Problem, kind_of

_decoder = msgspec.json.Decoder()


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises Problem 400 (not JSON) or 422 (not an object)."""
    document = decoded(body)
    if not isinstance(document, dict):
        raise Problem.wrong_content([Fault("$", f"expected an object, got {kind_of(document)}")])
    return document


def decoded(text: bytes | msgspec.Raw) -> Any:
    """Decoded JSON. Raises Problem 400."""
    try:
        return _decoder.decode(text)
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else _json_fault(error, bytes(text))
        raise Problem(400, f"the body is not JSON: {what}", faults=[Fault("$", what)]) from None


def _json_fault(error: Exception, body: bytes) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"invalid UTF-8 at byte {error.start}"
    fault = str(error).removeprefix("JSON is malformed: ")
    if b"NaN" in body or b"Infinity" in body:  # what some encoders write, Python's own among them
        fault += "; JSON knows no NaN and no Infinity, send null where a value is missing"
    return fault
