"""The Open Inference Protocol, version 2: a request's tensors -> the columns that service/rank/question.py makes,
scores -> tensors.

In: the body of POST /v2/models/<name>/infer, JSON or JSON followed by bytes (the binary tensor data extension). Out: a
model's columns. Then the body of the answer, FP32 tensors in request order, and the candidates' places where they are
named. A feature is one tensor, an id_list two, `<feature>.values` (flattened) and `<feature>.lengths`. Raises Problem:
400 not JSON, 413 too many candidates, 422 naming every fault.

Shapes: N candidates, B rows of a column. Every tensor has one dimension.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from model.features.block import BLOCKS
from model.features.encoder import Column, ColumnErrors, Encoded, FeatureEncoder, ReadRow
from model.features.kinds import Feature
from model.features.kinds.columns import Ids
from model.schema import Block
from model.strict_yaml import did_you_mean
from service.base.errors import FAULTS_SHOWN, Fault, Problem, shown, value_or_kind
from service.base.json_object import json_object
from service.open_inference.plan import DATATYPES, PLACE, SCORE, Features, TensorPlan, TensorType
from service.open_inference.received_tensors import ReceivedTensors, listed
from service.open_inference.tensors import (
    Tensor,
    WrongTensorError,
    check,
    check_integers,
    finite,
    lengths_of,
    numbers_of,
    shape_of,
    strings_of,
)
from service.open_inference.wire import InferInput, InferRequest
from service.rank.answer import Reply
from service.rank.faults import faults_of_body
from service.rank.hydrated_user import read_user
from service.state.users import FoundUser

HEADER_LENGTH = "Inference-Header-Content-Length"
# Extensions of the protocol that would change what is read or answered. Other parameters are hints and ignored.
_EXTENSIONS = ("shared_memory_region", "classification")

Answers = NDArray[np.float32] | NDArray[np.int64]
_DATATYPES = {"f": "FP32", "i": "INT64"}

_encoder = msgspec.json.Encoder()


_decoder = msgspec.json.Decoder(InferRequest)
_request_type = msgspec.inspect.type_info(InferRequest)


@dataclass(frozen=True, slots=True)
class Inference:
    """A request of a checked shape. `outputs` are the requested tensors, in order, and whether as bytes. Where none is
    named all are answered, as bytes or not by `is_binary`."""

    id: str | None
    value_model: str | None
    policy: str | None
    top_k: int | None
    inputs: dict[str, Tensor]
    outputs: dict[str, bool]
    is_binary: bool


def read(body: bytes, header_length: str | None) -> Inference:
    """The request in a body whose JSON, where bytes follow it, is as long as the header `header_length` says."""
    size = len(body) if header_length is None else _json_bytes(header_length, len(body))
    request = _decoded(body[:size])
    faults: list[Fault] = []
    parameters = request.parameters or {}
    value_model, policy = (_text(parameters, name, faults) for name in ("value_model", "policy"))
    top_k = _top_k(parameters, faults)
    is_binary = _flag(parameters, "binary_data_output", False, "parameters", faults)
    inputs = _inputs(request.inputs, memoryview(body)[size:], faults)
    outputs: dict[str, bool] = {}
    for output in request.outputs or ():
        if len(faults) >= FAULTS_SHOWN:
            break
        place = f"outputs.{shown(output.name)}"
        if output.name in outputs:
            faults.append(Fault(place, "asked for more than once"))
        _refuse_extensions(output.parameters, place, faults)
        outputs[output.name] = _flag(output.parameters or {}, "binary_data", is_binary, place, faults)
    if PLACE not in outputs:
        unused = [name for name, value in (("policy", policy), ("top_k", top_k)) if value is not None]
        faults += [Fault(f"parameters.{name}", f"needs the output '{PLACE}', which it decides") for name in unused]
    if faults:
        raise Problem.wrong_content(faults)
    return Inference(request.id, value_model, policy, top_k, inputs, outputs, is_binary)


def read_features(
    inference: Inference,
    encoder: FeatureEncoder,
    plan: TensorPlan,
    max_candidates: int,
    found: FoundUser | None = None,
) -> tuple[ReceivedTensors, ReadRow | Encoded]:
    """The features of a request, with what was found of its user, and user and context read."""
    features = plan.read(inference.inputs, max_candidates)
    if features is not None:
        # A number that is not finite is named by the way of all tensors.
        with suppress(ColumnErrors):
            return _with_state(features, found, encoder)
    return _with_state(_features(inference.inputs, encoder, plan, max_candidates), found, encoder)


def _with_state(
    features: Features, found: FoundUser | None, encoder: FeatureEncoder
) -> tuple[ReceivedTensors, ReadRow | Encoded]:
    received = ReceivedTensors(*features)
    if found is not None:
        merged, hydrated = found.hydrated(received.user)
        received = received._replace(user=merged, hydrated=hydrated)
    return received, read_user(received.user, received.hydrated, encoder)


def _features(inputs: Mapping[str, Tensor], encoder: FeatureEncoder, plan: TensorPlan, max_candidates: int) -> Features:
    """The features of tensors of any form, one by one."""
    _check_names("inputs", inputs, plan.names)
    rows = _candidates(inputs, plan.types["candidate"].values(), max_candidates)
    faults: list[Fault] = []
    made: dict[Block, dict[str, Column]] = {block: {} for block in BLOCKS}
    for block in BLOCKS:
        for feature in encoder.schema.requested(block):
            names = [tensor.name for tensor in plan.types[block][feature.name]]
            if not any(name in inputs for name in names):
                continue
            try:
                for missing in (name for name in names if name not in inputs):
                    raise WrongTensorError([Fault(f"inputs.{missing}", f"missing: {' and '.join(names)} go together")])
                tensors = [inputs[name] for name in names]
                made[block][feature.name] = _column(tensors, feature, encoder, block, 1 if block == "request" else rows)
            except WrongTensorError as error:
                faults += error.faults
    if faults:
        raise Problem.wrong_content(faults)
    return Features({name: listed(column)[0] for name, column in made["request"].items()}, made["candidate"], rows)


def chosen_outputs(inference: Inference, outputs: Sequence[str]) -> dict[str, bool]:
    """The tensors to answer, in order, and whether each goes as bytes."""
    known = (*outputs, SCORE)
    _check_names("outputs", inference.outputs, (*known, PLACE))
    return inference.outputs or dict.fromkeys(known, inference.is_binary)


def write(head: dict[str, Any], outputs: Mapping[str, bool], values: Mapping[str, Answers]) -> Reply:
    """The answer: `head` (model, versions, id), then of `values` (N of each) the tensors of `outputs`, bytes last."""
    entries: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for name, is_binary in outputs.items():
        entry: dict[str, Any] = {
            "name": name,
            "datatype": _DATATYPES[values[name].dtype.kind],
            "shape": [len(values[name])],
        }
        if is_binary:
            binary.append(values[name].astype(values[name].dtype.newbyteorder("<"), copy=False).tobytes())
            entry["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            entry["data"] = values[name].tolist()
        entries.append(entry)
    text = _encoder.encode({**head, "outputs": entries})
    if not binary:
        return Reply(text)
    length = (HEADER_LENGTH.lower().encode(), str(len(text)).encode())
    return Reply(b"".join([text, *binary]), b"application/octet-stream", (length,))


def _json_bytes(given: str, body: int) -> int:
    if not (given.isascii() and given.isdecimal() and len(given) <= 12 and int(given) <= body):
        rule = f"expected how many of the body's {body} bytes are its JSON, got {value_or_kind(given)}"
        raise Problem.wrong_content([Fault(f"header {HEADER_LENGTH}", rule)])
    return int(given)


def _decoded(text: bytes) -> InferRequest:
    try:
        return _decoder.decode(text)
    except (ValueError, RecursionError):
        raise Problem.wrong_content(faults_of_body(text, json_object(text), _request_type)) from None


def _inputs(given: Sequence[InferInput], binary: memoryview, faults: list[Fault]) -> dict[str, Tensor]:
    """The tensors by name, each with its part of the bytes after the JSON."""
    inputs: dict[str, Tensor] = {}
    position, end = 0, len(binary)
    for one in given:
        raw, name = None, one.name
        parameters = one.parameters or {}
        size = parameters.get("binary_data_size")
        if name in inputs:
            faults.append(Fault(f"inputs.{shown(name)}", "given more than once"))
        if len(parameters) > (size is not None):
            _refuse_extensions(parameters, f"inputs.{shown(name)}", faults)
        if size is not None:
            if type(size) is not int or not 0 <= size <= end - position:
                rule = (
                    f"expected binary_data_size to be within the {end - position} bytes after the JSON, got "
                    f"{value_or_kind(size)}"
                )
                faults.append(Fault(f"inputs.{shown(name)}", f"{rule}; the header {HEADER_LENGTH} says where it ends"))
                return inputs
            raw = binary[position : position + size]
            position += size
        if faults and len(faults) >= FAULTS_SHOWN:
            return inputs
        inputs[name] = Tensor(name, one.datatype, one.shape, one.data, raw)
    if position != end:
        faults.append(Fault("inputs", f"{end - position} bytes after the JSON belong to no input"))
    return inputs


def _refuse_extensions(parameters: Mapping[str, Any] | None, place: str, faults: list[Fault]) -> None:
    faults += [Fault(place, f"{name} is not supported") for name in _EXTENSIONS if parameters and name in parameters]


def _flag(parameters: Mapping[str, Any], name: str, default: bool, place: str, faults: list[Fault]) -> bool:
    given = parameters.get(name)
    if given is not None and not isinstance(given, bool):
        faults.append(Fault(f"{place}.{name}", f"expected true or false, got {value_or_kind(given)}"))
    return given if isinstance(given, bool) else default


def _text(parameters: Mapping[str, Any], name: str, faults: list[Fault]) -> str | None:
    given = parameters.get(name)
    if given is not None and not isinstance(given, str):
        faults.append(Fault(f"parameters.{name}", f"expected a string, got {value_or_kind(given)}"))
    return given if isinstance(given, str) else None


def _top_k(parameters: Mapping[str, Any], faults: list[Fault]) -> int | None:
    given = parameters.get("top_k")
    if given is None or (type(given) is int and given >= 1):
        return given
    faults.append(Fault("parameters.top_k", f"expected an integer of at least 1, got {value_or_kind(given)}"))
    return None


def _check_names(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    faults: list[Fault] = []
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known, f"the model's metadata lists its {what}")
            faults.append(Fault(f"{what}.{shown(name)}", f"the model has no such tensor; {hint}"))
        if len(faults) == FAULTS_SHOWN:
            break  # naming the nearest one for each of a hostile million would take minutes
    if faults:
        raise Problem.wrong_content(faults)


def _candidates(inputs: Mapping[str, Tensor], types: Iterable[Sequence[TensorType]], most: int) -> int:
    """N, by the first tensor that has one value for each candidate. The others are compared with it."""
    given = [inputs[group[-1].name] for group in types if group[-1].name in inputs]
    if not given:
        rule = "no candidates: at least one feature of theirs is needed, which says how many they are"
        raise Problem.wrong_content([Fault("inputs", rule)])
    place, shape = given[0].place, given[0].shape
    if len(shape) != 1 or shape[0] < 1:
        raise Problem.wrong_content(
            [Fault(place, f"expected a shape of one dimension, one candidate or more, got {shape_of(shape)}")]
        )
    if shape[0] > most:
        message = f"more than {most} candidates; send them in several requests"
        raise Problem(413, f"{place}: {message}", faults=[Fault(place, message)], reason="too_many_candidates")
    return shape[0]


def _column(tensors: Sequence[Tensor], feature: Feature, encoder: FeatureEncoder, block: Block, rows: int) -> Column:
    """The column of a feature's tensors: its values, then the lengths of its lists."""
    values = tensors[0]
    check(values, DATATYPES[encoder.dtype(feature.name)], None if feature.is_list else rows)
    lengths_B = None
    for lengths in tensors[1:]:
        check(lengths, ("INT64",), rows)
        lengths_B = lengths_of(lengths, values.shape[0])
    column = _values(values, lengths_B, feature, encoder, block)
    if values.datatype == "FP32" and values.data is not None:
        # What a JSON number is of its type, so that a tensor's scores do not depend on how it was sent.
        with np.errstate(over="ignore"):
            rounded = np.asarray(column.values, np.float32).astype(np.float64)
        column = column._replace(values=finite(values, rounded))
    return column


def _values(tensor: Tensor, lengths_B: Ids | None, feature: Feature, encoder: FeatureEncoder, block: Block) -> Column:
    """The column of a checked tensor's values, which are in lists of the given lengths if any."""
    data: list[Any] | None = (
        strings_of(tensor) if tensor.raw is not None and tensor.datatype == "BYTES" else tensor.data
    )
    if data is None:
        numbers = numbers_of(tensor)
        if feature.has_fast_path:
            return Column(numbers, None, lengths_B)
        data = numbers.tolist()
    if tensor.datatype == "INT64":
        check_integers(tensor, data)
    if lengths_B is not None:
        ends = np.cumsum(lengths_B).tolist()
        data = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    try:
        return encoder.columns(block, {feature.name: data}, len(data))[feature.name]
    except ColumnErrors as errors:
        faults = [fault for error in errors.errors for fault in error.faults]
        raise WrongTensorError(
            [Fault(_place_of(fault.row, tensor, lengths_B), fault.message) for fault in faults]
        ) from None


def _place_of(row: int | None, tensor: Tensor, lengths_B: Ids | None) -> str:
    """The value that a fault is in. Of lists the tensor, for a row is not a place in it."""
    return tensor.place if row is None or lengths_B is not None else f"{tensor.place}[{row}]"
