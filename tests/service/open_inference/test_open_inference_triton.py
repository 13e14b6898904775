"""The Triton HTTP client as it is published, against a real service."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from tests.artifacts import publish_artifact
from tests.service.open_inference.tensors import tensors_of
from tests.service.running import RunningService

REQUEST: dict[str, Any] = {
    "user": {"user_id": 17, "country": "fr", "history": [3, 9, 4, 5], "age_days": 12.5, "tab": 1},
    "candidates": {
        "id": ["a", "b", "c"],
        "features": {
            "video_id": [3, 9, -4],
            "tag": ["x", "", "ünï☃"],
            "topics": [[7], [], [8, 9, 1000]],
            "duration_ms": [8000.0, 31000.5, 0.0],
        },
    },
}
DTYPES: dict[str, type] = {"INT64": np.int64, "FP32": np.float32, "BYTES": np.object_}
# FP32 has 6e-8 of a value. The model's own arithmetic is the same for the same values.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    models = tmp_path_factory.mktemp("models")
    publish_artifact(models)
    with RunningService(models) as running:
        yield running.wait_ready()


@pytest.fixture(scope="module")
def client(service: RunningService) -> Iterator[Any]:
    client = triton.InferenceServerClient(str(service.client.base_url.netloc, "ascii"))
    yield client
    client.close()


@pytest.fixture(scope="module")
def expected(service: RunningService) -> dict[str, np.ndarray]:
    """Answers of /v1/rank, put back into request order."""
    candidates = service.client.post("/v1/rank", json=REQUEST).json()["candidates"]
    order = [candidates["id"].index(identifier) for identifier in REQUEST["candidates"]["id"]]
    columns = {**candidates["tasks"], "score": candidates["score"]}
    return {name: np.array(values)[order] for name, values in columns.items()}


def inputs(in_bytes: bool) -> list[Any]:
    """The request's tensors, made by the client."""
    made = []
    for tensor in tensors_of(REQUEST):
        values: NDArray[Any] = np.array(tensor.values, DTYPES[tensor.datatype])
        made.append(triton.InferInput(tensor.name, list(values.shape), tensor.datatype))
        made[-1].set_data_from_numpy(values, binary_data=in_bytes)
    return made


@pytest.mark.parametrize("in_bytes", [True, False])
@pytest.mark.parametrize("out_bytes", [True, False, None])
def test_scores_are_those_of_rank(
    client: Any, expected: dict[str, np.ndarray], in_bytes: bool, out_bytes: bool | None
) -> None:
    asked = None
    if out_bytes is not None:
        asked = [triton.InferRequestedOutput(name, binary_data=out_bytes) for name in expected]
    result = client.infer("tiny", inputs(in_bytes), outputs=asked, request_id="r-7")
    assert result.get_response()["id"] == "r-7"
    for name, values in expected.items():
        np.testing.assert_allclose(result.as_numpy(name), values, rtol=TOLERANCE)
        assert result.as_numpy(name).dtype == np.float32


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_what_else_the_client_can_send_is_understood(
    client: Any, expected: dict[str, np.ndarray], algorithm: str
) -> None:
    result = client.infer(
        "tiny",
        inputs(True),
        model_version="1",
        priority=1,
        timeout=1_000_000,
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
        parameters={"value_model": "default"},
    )
    np.testing.assert_allclose(result.as_numpy("score"), expected["score"], rtol=TOLERANCE)
    waiting = client.async_infer("tiny", inputs(True))
    np.testing.assert_allclose(waiting.get_result().as_numpy("score"), expected["score"], rtol=TOLERANCE)


def test_a_request_can_be_built_from_the_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("tiny", "2")
    assert not client.is_model_ready("nope")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("tiny", "1")
    made = []
    for entry in metadata["inputs"]:
        # Two candidates. Lists of two values, all in the first of them.
        shape = [2 if size == -1 else size for size in entry["shape"]]
        fill = "x" if entry["datatype"] == "BYTES" else 1
        values: NDArray[Any] = np.full(shape, fill, DTYPES[entry["datatype"]])
        if entry["name"].endswith(".lengths"):
            values = np.array([2, 0][: shape[0]])
        made.append(triton.InferInput(entry["name"], shape, entry["datatype"]))
        made[-1].set_data_from_numpy(values)
    names = [entry["name"] for entry in metadata["outputs"]]
    result = client.infer("tiny", made, outputs=[triton.InferRequestedOutput(name) for name in names])
    for name in names:
        assert result.as_numpy(name).shape == (2,)
    assert sorted(result.as_numpy("place").tolist()) == [0, 1]
    unnamed = client.infer("tiny", made)
    assert [name for name in names if unnamed.as_numpy(name) is None] == ["place"]


def test_refusals_reach_the_caller_as_the_client_s_own_error(client: Any) -> None:
    wrong = triton.InferInput("duration_ms", [1], "FP32")
    wrong.set_data_from_numpy(np.array([np.nan], np.float32))
    with pytest.raises(InferenceServerException, match=r"inputs\.duration_ms") as refused:
        client.infer("tiny", [wrong])
    assert refused.value.status() == "400"
    with pytest.raises(InferenceServerException, match="no such model") as refused:
        client.infer("nope", inputs(True))
    assert refused.value.status() == "404"
