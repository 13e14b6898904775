"""Input tensors of a model version: its metadata, and a plan that reads a request of bytes in one loop.

In: the tensors of a request by name. Out: `Features`, or None where anything is not as the plan has it.
service/open_inference/infer.py then reads tensor by tensor and names every fault.

Shapes: N candidates, B rows of a column.
"""

from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Any, NamedTuple

import numpy as np

from model.features.block import BLOCKS
from model.features.encoder import Column, FeatureEncoder
from model.features.kinds.columns import Dtype, Ids, Values
from model.schema import Block
from service.open_inference.tensors import NUMBERS, TYPES, Tensor, WrongTensorError, are_lengths, strings_of

SCORE, PLACE = "score", "place"
# The first is that of the metadata.
DATATYPES: dict[Dtype | None, tuple[str, ...]] = {"int64": ("INT64",), "string": ("BYTES",), None: NUMBERS}
_ONE = {"INT64": Struct("<q"), "FP32": Struct("<f")}
_SHAPE = [1]
_SIZES = {datatype: dtype.itemsize for datatype, dtype in TYPES.items()}
_INT64 = np.dtype(np.int64)


class TensorType(NamedTuple):
    """Metadata of one tensor. Size -1 varies."""

    name: str
    datatype: str
    size: int

    def entry(self) -> dict[str, Any]:
        """This tensor as the protocol describes it."""
        return {"name": self.name, "datatype": self.datatype, "shape": [self.size]}


def input_types(encoder: FeatureEncoder, block: Block) -> dict[str, list[TensorType]]:
    """The tensors of each feature that a request carries, in the schema's order: one, or values and lengths."""
    size = 1 if block == "request" else -1
    types: dict[str, list[TensorType]] = {}
    for feature in encoder.schema.requested(block):
        name = feature.name
        datatype = DATATYPES[encoder.dtype(name)][0]
        if feature.is_list:
            types[name] = [TensorType(f"{name}.values", datatype, -1), TensorType(f"{name}.lengths", "INT64", size)]
        else:
            types[name] = [TensorType(name, datatype, size)]
    return types


def metadata_inputs(encoder: FeatureEncoder) -> list[dict[str, Any]]:
    """The tensors that a model takes, as the protocol describes them."""
    return [tensor.entry() for block in BLOCKS for types in input_types(encoder, block).values() for tensor in types]


def metadata_outputs(outputs: Sequence[str]) -> list[dict[str, Any]]:
    """The tensors of an answer, as the protocol describes them. `place` is answered to requests that name it."""
    place = {**TensorType(PLACE, "INT64", -1).entry(), "parameters": {"on_request": True}}
    return [*(TensorType(name, "FP32", -1).entry() for name in (*outputs, SCORE)), place]


class Features(NamedTuple):
    """The features of a request: user and context as JSON has them, columns of the candidates, and N."""

    user: dict[str, Any]
    candidates: dict[str, Column]
    num_candidates: int


class _Slot(NamedTuple):
    """Place of a feature: its tensor, and that of its lists' lengths. `one` reads a single number of a request."""

    feature: str
    is_request: bool
    values: str
    datatype: str
    lengths: str | None
    one: Struct | None


class TensorPlan:
    """The input tensors of a model version, in order: `types` by block and feature, and their `names`."""

    def __init__(self, encoder: FeatureEncoder) -> None:
        self.types = {block: input_types(encoder, block) for block in BLOCKS}
        self.names = [one.name for block in BLOCKS for types in self.types[block].values() for one in types]
        self._slots = [
            _slot(name, types, is_request=block == "request")
            for block in BLOCKS
            for name, types in self.types[block].items()
        ]
        self._is_plain = all(feature.has_fast_path for feature in encoder.schema.requested("candidate"))

    def read(self, inputs: Mapping[str, Tensor], max_candidates: int) -> Features | None:
        """The features of tensors that are all bytes. Numbers of the request may be infinite or none."""
        user: dict[str, Any] = {}
        columns: dict[str, Column] = {}
        rows, taken = None, 0
        for feature, is_request, values_name, datatype, lengths_name, one in self._slots:
            tensor = inputs.get(values_name)
            if tensor is None:
                continue
            taken += 1
            if one is not None:
                _, given, shape, data, raw = tensor
                if raw is None or data is not None or given != datatype or shape != _SHAPE or len(raw) != one.size:
                    return None
                (user[feature],) = one.unpack(raw)
                continue
            values = _values(tensor, datatype)
            if values is None:
                return None
            lengths_B = None
            if lengths_name is not None:
                taken += 1
                lengths_B = _lengths(inputs.get(lengths_name), len(values))
                if lengths_B is None:
                    return None
            count = len(values if lengths_B is None else lengths_B)
            if is_request:
                if count != 1:
                    return None
                listed = values if isinstance(values, list) else values.tolist()
                user[feature] = listed[0] if lengths_B is None else listed
            elif count == (count if rows is None else rows):
                rows = count
                columns[feature] = Column(values, None, lengths_B)
            else:
                return None
        if taken != len(inputs) or rows is None or not 0 < rows <= max_candidates or not self._is_plain:
            return None
        return Features(user, columns, rows)


def _slot(feature: str, types: Sequence[TensorType], *, is_request: bool) -> _Slot:
    values, *lengths = types
    one = _ONE.get(values.datatype) if is_request and not lengths else None
    return _Slot(feature, is_request, values.name, values.datatype, lengths[0].name if lengths else None, one)


def _lengths(tensor: Tensor | None, values: int) -> Ids | None:
    lengths_B: Any = None if tensor is None else _values(tensor, "INT64")
    return None if lengths_B is None or not are_lengths(lengths_B, values) else lengths_B


def _values(tensor: Tensor, datatype: str) -> Values | None:
    """The values of a tensor of bytes."""
    _, given, shape, data, raw = tensor
    if raw is None or data is not None or given != datatype or len(shape) != 1:
        return None
    if datatype == "BYTES":
        try:
            return strings_of(tensor) if shape[0] <= len(raw) else None
        except WrongTensorError:
            return None
    values = np.frombuffer(raw, TYPES[datatype]) if shape[0] * _SIZES[datatype] == len(raw) else None
    if values is None or datatype == "INT64":
        return None if values is None else values.astype(_INT64)  # a copy, as bytes in a body are not aligned
    numbers = values.astype(np.float64)
    return numbers if np.isfinite(numbers).all() else None
