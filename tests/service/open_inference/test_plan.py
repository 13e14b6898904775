"""A plan's tensors: a request of bytes is read in one loop, and anything else is left to the reader that names faults.

Shapes: B rows of a column.
"""

import copy
from typing import Any

import numpy as np
import pytest

from model.features.encoder import FeatureEncoder
from service.open_inference.infer import read
from service.open_inference.plan import Features, TensorPlan
from service.open_inference.tensors import Tensor
from tests.service.open_inference.tensors import HEADER_LENGTH, Given, binary_body, tensors_of
from tests.service.open_inference.test_open_inference import WHOLE, encoder, models

__all__ = ["encoder", "models"]


def inputs_of(tensors: list[Given]) -> dict[str, Tensor]:
    body, headers = binary_body(tensors)
    return read(body, headers[HEADER_LENGTH]).inputs


def read_by_plan(encoder: FeatureEncoder, tensors: list[Given], most: int = 10) -> Features | None:
    return TensorPlan(encoder).read(inputs_of(tensors), most)


def test_bytes_are_the_values_that_they_hold(encoder: FeatureEncoder) -> None:
    found = read_by_plan(encoder, tensors_of(WHOLE))
    assert found is not None
    assert found.user == WHOLE["user"]
    features = WHOLE["candidates"]["features"]
    assert found.num_candidates == len(WHOLE["candidates"]["id"])
    assert found.candidates.keys() == features.keys()
    for name, column in found.candidates.items():
        values = list(column.values)
        if column.lengths_B is not None:
            ends = np.cumsum(column.lengths_B).tolist()
            values = [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        assert values == features[name], name


def test_a_feature_may_be_left_out(encoder: FeatureEncoder) -> None:
    found = read_by_plan(encoder, [one for one in tensors_of(WHOLE) if one.name in ("video_id", "tab")])
    assert found is not None
    assert (list(found.user), list(found.candidates)) == (["tab"], ["video_id"])


def changed(tensor: str, **changes: Any) -> list[Given]:
    return [one._replace(**changes) if one.name == tensor else one for one in tensors_of(WHOLE)]


@pytest.mark.parametrize("tensors", [
    [],
    changed("video_id", name="video"),
    changed("video_id", datatype="FP32"),
    changed("video_id", values=[1]),
    changed("tab", values=[1, 2]),
    changed("age_days", datatype="FP64"),
    changed("history.lengths", values=[2]),
    changed("topics.lengths", values=[-1, *[1] * (len(WHOLE["candidates"]["id"]) - 1)]),
    changed("duration_ms", values=[float("inf")] * len(WHOLE["candidates"]["id"])),
    [one for one in tensors_of(WHOLE) if one.name != "topics.lengths"],
    [one for one in tensors_of(WHOLE) if one.name != "topics.values"],
])  # fmt: skip
def test_what_is_not_as_planned_is_left_to_the_reader_of_faults(encoder: FeatureEncoder, tensors: list[Given]) -> None:
    assert read_by_plan(encoder, tensors) is None


def test_too_many_candidates_and_values_in_json_are_left_too(encoder: FeatureEncoder) -> None:
    assert read_by_plan(encoder, tensors_of(WHOLE), most=len(WHOLE["candidates"]["id"]) - 1) is None
    inputs = copy.copy(inputs_of(tensors_of(WHOLE)))
    inputs["tab"] = inputs["tab"]._replace(data=[1], raw=None)
    assert TensorPlan(encoder).read(inputs, 10) is None
