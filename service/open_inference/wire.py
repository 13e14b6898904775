"""The JSON of the Open Inference Protocol's infer, stated once: parsing, the paths of faults and OpenAPI are read from
these classes.

Other keys are ignored, as the protocol has it. Bounds that only the description knows are checked with the tensors
(service/open_inference/tensors.py), which says more.

Shapes: N candidates.
"""

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

Parameters = dict[str, Any]
Shape = Annotated[
    list[Annotated[int, Meta(extra_json_schema={"minimum": 0})]],
    Meta(extra_json_schema={"minItems": 1, "maxItems": 1}),
]
Datatype = Annotated[str, Meta(extra_json_schema={"enum": ["INT64", "FP32", "FP64", "BYTES"]})]
Data = Annotated[
    Annotated[list[Any], Meta(extra_json_schema={"items": {}})] | None,
    Meta(description="left out where binary_data_size is a parameter"),
]


class InferInput(Struct):
    """A tensor of a request."""

    name: str
    shape: Shape
    datatype: Datatype
    parameters: Parameters | None = None
    data: Data = None


class RequestedOutput(Struct):
    """A tensor that is asked for."""

    name: str
    parameters: Parameters | None = None


class InferRequest(Struct):
    """A scoring request as tensors."""

    inputs: list[InferInput]
    id: Annotated[str | None, Meta(description="echoed")] = None
    parameters: Annotated[
        Parameters | None, Meta(description="value_model, binary_data_output, policy, top_k. Others are ignored")
    ] = None
    outputs: Annotated[
        list[RequestedOutput] | None,
        Meta(description="outputs of the model (a task, or task.class), score and place. All but place where left out"),
    ] = None


class InferOutput(Struct):
    """A tensor of an answer: N values."""

    name: str
    datatype: Datatype
    shape: Shape
    parameters: Parameters | UnsetType = UNSET
    data: Annotated[list[float], Meta(description="left out where binary_data_size is a parameter")] | UnsetType = UNSET


class AnswerParameters(Struct):
    """The value model that scored, the policy that placed, and the generation of a calibration that was fitted after
    the export."""

    value_model: str
    value_model_version: str
    policy: str | UnsetType = UNSET
    policy_version: str | UnsetType = UNSET
    calibration: str | UnsetType = UNSET


class InferAnswer(Struct):
    """The answer to a scoring request as tensors."""

    model_name: str
    model_version: str
    parameters: AnswerParameters
    outputs: Annotated[list[InferOutput], Meta(description="in request order, not ranked")]
    id: str | UnsetType = UNSET


class InferError(Struct):
    """A refusal."""

    error: str
