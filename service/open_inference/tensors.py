"""One tensor of an Open Inference request: its datatype and shape, checked against its content, and its values.

In: a tensor with JSON values or bytes (little-endian, each string of BYTES after its length in 4 bytes). Out: arrays or
strings. Nothing is made of a claim: sizes are compared as numbers first. Raises WrongTensorError naming the tensor.
"""

from collections.abc import Mapping, Sequence
from struct import unpack_from
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.features.kinds.columns import ID_LIMITS
from model.user import user_of
from service.base.errors import FAULTS_SHOWN, Fault, Problem, shown, value_or_kind
from service.models.version import StatefulModel

# Datatypes of a number: FP64 is beyond the metadata, and keeps a number that FP32 would round.
NUMBERS = ("FP32", "FP64")
TYPES: dict[str, np.dtype[Any]] = {"INT64": np.dtype("<i8"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8")}
_LENGTH_BYTES = 4
_DIMENSIONS_SHOWN = 4


class Tensor(NamedTuple):
    """A tensor as it was sent: either `data`, the values of its JSON, or `raw`, its bytes."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None
    raw: memoryview | None

    @property
    def place(self) -> str:
        """The tensor as faults name it."""
        return f"inputs.{shown(self.name)}"


class WrongTensorError(ValueError):
    """A tensor that cannot be taken, and why."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(f"{fault.path}: {fault.message}" for fault in faults))
        self.faults = tuple(faults)


def check(tensor: Tensor, datatypes: Sequence[str], size: int | None) -> None:
    """Checks datatype, shape (`size` values, any number of them for None) and that as many values came with it."""
    if tensor.datatype not in datatypes:
        raise _wrong(tensor, f"expected datatype {' or '.join(datatypes)}, got {shown(tensor.datatype)}")
    if len(tensor.shape) != 1:
        raise _wrong(tensor, f"expected a shape of one dimension, got {shape_of(tensor.shape)}")
    (count,) = tensor.shape
    if count < 0 if size is None else count != size:
        expected = "0 or more values" if size is None else f"shape [{size}]"
        raise _wrong(tensor, f"expected {expected}, got {shape_of(tensor.shape)}")
    if tensor.data is not None and tensor.raw is not None:
        raise _wrong(tensor, "has both data and binary_data_size; give one of them")
    if tensor.data is not None:
        if len(tensor.data) != count:
            raise _wrong(tensor, f"its shape [{count}] does not fit its {len(tensor.data)} values")
    elif tensor.raw is None:
        raise _wrong(tensor, "has no values; give data, or binary_data_size and bytes after the JSON")
    elif tensor.datatype == "BYTES":
        if count > len(tensor.raw) // _LENGTH_BYTES:
            raise _wrong(tensor, f"its shape [{count}] does not fit its {len(tensor.raw)} bytes")
    elif count * TYPES[tensor.datatype].itemsize != len(tensor.raw):
        size_of_one = TYPES[tensor.datatype].itemsize
        fit = f"does not fit its {len(tensor.raw)} bytes, {size_of_one} for each value"
        raise _wrong(tensor, f"its shape [{count}] {fit}")


def numbers_of(tensor: Tensor) -> NDArray[np.int64] | NDArray[np.float64]:
    """The values of a checked tensor that came as bytes: int64, or finite float64."""
    assert tensor.raw is not None
    values: NDArray[Any] = np.frombuffer(tensor.raw, TYPES[tensor.datatype])
    # Copies, as bytes in a body are not aligned.
    return values.astype(np.int64) if tensor.datatype == "INT64" else finite(tensor, values.astype(np.float64))


def finite(tensor: Tensor, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`values` where all are finite."""
    wrong = np.flatnonzero(~np.isfinite(values))[:FAULTS_SHOWN]
    if len(wrong):
        message = f"expected a finite number of {tensor.datatype}"
        raise WrongTensorError([Fault(f"{tensor.place}[{position}]", message) for position in wrong.tolist()])
    return values


def user_of_tensors(inputs: Mapping[str, Tensor], feature: str) -> str | None:
    """The user that a feature's tensor names. None where it is not there, null, or wrong, which is refused later."""
    tensor = inputs.get(feature)
    if tensor is None:
        return None
    try:
        check(tensor, ("INT64", "BYTES"), 1)
        values = tensor.data
        if values is None:
            values = strings_of(tensor) if tensor.datatype == "BYTES" else numbers_of(tensor).tolist()
    except WrongTensorError:
        return None
    return user_of({feature: values[0]}, feature)


def take_key(inputs: dict[str, Tensor], model: StatefulModel) -> dict[str, str | None]:
    """The key of the user among tensors, which loses it where it is no feature. Raises Problem 422 where it is none."""
    key = model.file.key
    user = user_of_tensors(inputs, key)
    if key in inputs and key not in model.features:
        tensor = inputs.pop(key)
        if user is None:
            rule = "expected the key of a user, an INT64 or BYTES tensor of shape [1]"
            raise Problem.wrong_content([Fault(tensor.place, rule)])
    return {key: user}


def strings_of(tensor: Tensor) -> list[str]:
    """The strings of a checked BYTES tensor that came as bytes."""
    assert tensor.raw is not None
    raw, position, strings = tensor.raw, 0, []
    for number in range(tensor.shape[0]):
        start = position + _LENGTH_BYTES
        if start > len(raw):
            raise _wrong(tensor, f"its bytes end before the length of value {number}")
        (length,) = unpack_from("<I", raw, position)
        position = start + length
        if position > len(raw):
            raise _wrong(tensor, f"its bytes end within value {number}")
        try:
            strings.append(str(raw[start:position], "utf-8"))
        except UnicodeDecodeError:
            raise WrongTensorError([Fault(f"{tensor.place}[{number}]", "expected UTF-8")]) from None
    if position != len(raw):
        raise _wrong(tensor, f"{len(raw) - position} bytes come after the last value")
    return strings


def check_integers(tensor: Tensor, data: Sequence[object]) -> None:
    """Checks JSON values of an INT64 tensor, of which the protocol takes no strings, while /v1 does."""
    if set(map(type, data)) <= {int, type(None)}:
        return
    wrong = [position for position, value in enumerate(data) if type(value) not in (int, type(None))]
    message = "expected an integer of INT64 or null"
    raise WrongTensorError([Fault(f"{tensor.place}[{position}]", message) for position in wrong[:FAULTS_SHOWN]])


def lengths_of(tensor: Tensor, values: int) -> NDArray[np.int64]:
    """The lengths of lists that have `values` values in all."""
    if tensor.data is None:
        lengths = numbers_of(tensor).astype(np.int64)
    elif all(type(length) is int and ID_LIMITS[0] <= length <= ID_LIMITS[1] for length in tensor.data):
        lengths = np.array(tensor.data, np.int64)
    else:
        raise _wrong(tensor, "expected integers")
    if not are_lengths(lengths, values):
        raise _wrong(tensor, f"expected lengths of 0 or more whose sum is the number of values, {values}")
    return lengths


def are_lengths(lengths: NDArray[np.int64], values: int) -> bool:
    """True for lengths of lists that have `values` values in all."""
    if not len(lengths):
        return values == 0
    # Each alone first: a sum of lengths near 2^63 would wrap around to the expected one. Unsigned, a negative one is
    # beyond any number of values.
    return bool(lengths.view(np.uint64).max() <= values and lengths.sum() == values)


def shape_of(shape: Sequence[int]) -> str:
    """A shape as a refusal names it, of one with many dimensions the first ones."""
    dimensions = ", ".join(map(value_or_kind, shape[:_DIMENSIONS_SHOWN]))
    return f"[{dimensions}{', ...' if len(shape) > _DIMENSIONS_SHOWN else ''}]"


def _wrong(tensor: Tensor, message: str) -> WrongTensorError:
    return WrongTensorError([Fault(tensor.place, message)])
