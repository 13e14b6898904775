"""Bodies of the page's requests, decoded by the types that state them."""

from typing import TypeVar

import msgspec

from service.base.errors import Problem
from service.base.json_object import json_object
from service.rank.faults import faults_of

T = TypeVar("T")


def read_object(body: bytes, kind: type[T], checked: type | None = None) -> T:
    """A body as its type. Raises Problem: 400 not JSON, 422 with every fault, by `checked` where parts of `kind` are
    kept raw."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError):
        faults = list(faults_of(json_object(body), msgspec.inspect.type_info(checked or kind)))
        assert faults, "msgspec finds a fault that the walk does not"
        raise Problem.wrong_content(faults) from None
