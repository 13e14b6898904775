"""The key of a body that is not parsed yet: that of the parsed one wherever it stands, and never an error."""

import json
import random
from typing import Any

import numpy as np
import pytest

from service.open_inference.guessed_key import guessed_key
from service.open_inference.infer import read
from service.open_inference.tensors import user_of_tensors

KEYS = [17, 0, -(2**63), 2**63 - 1, "17", "a", 'wi"th', "\u00e9\u4e16 \U0001f600", "x" * 256, '"name": "user_id"']


def tensor(name: str, values: list[Any], *, is_binary: bool) -> tuple[dict[str, Any], bytes]:
    """An input and its bytes after the JSON."""
    is_text = isinstance(values[0], str)
    given = {"name": name, "shape": [len(values)], "datatype": "BYTES" if is_text else "INT64"}
    if not is_binary:
        return {**given, "data": values}, b""
    parts = [text.encode() for text in values] if is_text else []
    raw = b"".join(len(part).to_bytes(4, "little") + part for part in parts) or np.array(values, "<i8").tobytes()
    return {**given, "parameters": {"binary_data_size": len(raw)}}, raw


def body_of(tensors: list[tuple[dict[str, Any], bytes]], *, is_compact: bool) -> tuple[bytes, str | None]:
    """A body of tensors, and the header that says where its JSON ends."""
    separators = (",", ":") if is_compact else None
    text = json.dumps({"id": "r-1", "inputs": [one for one, _ in tensors]}, separators=separators).encode()
    raw = b"".join(one for _, one in tensors)
    return text + raw, str(len(text)) if raw else None


def test_the_key_is_that_of_the_parsed_request_wherever_it_stands() -> None:
    random_ = random.Random(1)
    for number in range(200):
        key = KEYS[number % len(KEYS)]
        others = [
            tensor(f"feature_{n}", [n + 1] * random_.randint(1, 5), is_binary=random_.random() < 0.5) for n in range(5)
        ]
        tensors = [*others, tensor("user_id", [key], is_binary=random_.random() < 0.5)]
        random_.shuffle(tensors)
        body, header = body_of(tensors, is_compact=random_.random() < 0.5)
        parsed = user_of_tensors(read(body, header).inputs, "user_id")
        assert guessed_key(body, header, "user_id") == parsed == str(key)


@pytest.mark.parametrize(
    "tensors",
    [
        [tensor("other", [17], is_binary=False)],
        [tensor("user_id", [1, 2], is_binary=False)],
        [tensor("user_id", ["x" * 257], is_binary=True)],
        [({"name": "user_id", "datatype": "INT64", "shape": [1], "data": None}, b"")],
        [({"name": "user_id", "datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": 8}}, b"1234")],
        [({"name": "user_id", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 8}}, b"\xff" * 8)],
        [({"name": "user_id", "shape": [1]}, b"12345678")],
    ],
)
def test_a_body_that_names_none_has_none(tensors: list[tuple[dict[str, Any], bytes]]) -> None:
    body, header = body_of(tensors, is_compact=True)
    assert guessed_key(body, header, "user_id") is None


def test_no_body_is_an_error() -> None:
    """Bodies cut, and with bytes that are others."""
    random_ = random.Random(2)
    for is_binary in (False, True):
        tensors = [tensor("a", [1, 2], is_binary=is_binary), tensor("user_id", ["17"], is_binary=is_binary)]
        whole, header = body_of(tensors, is_compact=True)
        for given in (header, "-5", "9" * 5_000, "two"):
            for end in range(len(whole)):
                guessed_key(whole[:end], given, "user_id")
                broken = bytearray(whole)
                broken[end] = random_.randrange(256)
                guessed_key(bytes(broken), given, "user_id")
