"""A request of /v1/rank as tensors of the Open Inference Protocol, encoded by hand from the protocol's text.

In: a request in the columnar shape and which of its features are what. Out: a JSON body, or JSON with the tensors'
bytes after it and the header that says where they begin.
"""

import json
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from starlette.testclient import TestClient

from tests.artifacts import TINY_SCHEMA

INFER = "/v2/models/tiny/infer"
HEADER_LENGTH = "Inference-Header-Content-Length"
# 4 bytes of length before each string. Numbers little-endian, one after the other.
_FORMATS = {"INT64": "<q", "FP32": "<f", "FP64": "<d"}


class Given(NamedTuple):
    """One tensor of a request."""

    name: str
    datatype: str
    values: Sequence[Any]

    def as_json(self) -> dict[str, Any]:
        """The tensor with its values in JSON."""
        return {**self.claim(), "data": list(self.values)}

    def claim(self) -> dict[str, Any]:
        """Name, datatype and shape."""
        return {"name": self.name, "datatype": self.datatype, "shape": [len(self.values)]}

    def as_bytes(self) -> bytes:
        """Its values as the binary tensor data extension has them."""
        if self.datatype == "BYTES":
            texts = [value.encode() for value in self.values]
            return b"".join(struct.pack("<I", len(text)) + text for text in texts)
        return b"".join(struct.pack(_FORMATS[self.datatype], value) for value in self.values)


def tensors_of(request: dict[str, Any]) -> list[Given]:
    """The tensors of a request to the tiny model."""
    kinds = {feature["name"]: feature for feature in TINY_SCHEMA["features"]}
    columns = {**{name: [value] for name, value in request["user"].items()}, **request["candidates"]["features"]}
    tensors = []
    for name, column in columns.items():
        datatype = "BYTES" if kinds[name].get("dtype") == "string" else "INT64"
        if kinds[name]["kind"] == "id_list":
            lists = [value or [] for value in column]
            tensors.append(Given(f"{name}.values", datatype, [value for one in lists for value in one]))
            tensors.append(Given(f"{name}.lengths", "INT64", [len(one) for one in lists]))
        else:
            tensors.append(Given(name, "FP32" if kinds[name]["kind"] == "number" else datatype, column))
    return tensors


def binary_body(tensors: Sequence[Given], **keys: Any) -> tuple[bytes, dict[str, str]]:
    """A body whose tensors are all bytes, and its headers."""
    parts = [tensor.as_bytes() for tensor in tensors]
    inputs = [
        {**tensor.claim(), "parameters": {"binary_data_size": len(part)}}
        for tensor, part in zip(tensors, parts, strict=True)
    ]
    text = json.dumps({**keys, "inputs": inputs}).encode()
    return b"".join([text, *parts]), {HEADER_LENGTH: str(len(text))}


def infer(client: TestClient, tensors: Sequence[Given], path: str = INFER, **keys: Any) -> dict[str, Any]:
    """The answer to tensors in JSON."""
    response = client.post(path, json={**keys, "inputs": [tensor.as_json() for tensor in tensors]})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def outputs_of(answer: dict[str, Any], after: bytes = b"") -> dict[str, np.ndarray]:
    """The tensors of an answer, those in its JSON and those in the bytes after it."""
    outputs = {}
    for output in answer["outputs"]:
        assert output["datatype"] == "FP32"
        if "data" in output:
            values = np.array(output["data"])
        else:
            size = output["parameters"]["binary_data_size"]
            values = np.array(struct.unpack(f"<{size // 4}f", after[:size]))
            after = after[size:]
        assert output["shape"] == list(values.shape)
        outputs[output["name"]] = values
    assert after == b""
    return outputs
