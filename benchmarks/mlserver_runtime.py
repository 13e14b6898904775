"""A runtime of MLServer around the ranker as it was trained: the Open Inference Protocol, one tensor for each feature.

In: the parameter `uri` of model-settings.json, the path of the TorchScript file, tensors `<feature>`, and for lists
`<feature>.values` and `<feature>.lengths`. Out: one FP32 tensor for each task and `score`, in request order. It runs in
MLServer's own environment (requirements/mlserver.txt), which has neither torchrec nor this project's service.

Shapes: R rows of a block, K single-id features, Q numbers, N candidates, O outputs.
"""

from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from numpy.typing import NDArray

from benchmarks.as_trained_calls import AsTrainedFile, Inputs
from benchmarks.reference_feed import TASKS, names_of
from model.schema import Block

Tensors = dict[str, NDArray[np.generic]]


class AsTrainedRuntime(MLModel):
    """Runtime that MLServer loads and calls."""

    async def load(self) -> bool:
        """Load the file that `uri` names."""
        self._as_trained = AsTrainedFile(Path(self.settings.parameters.uri))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Scores."""
        tensors = {given.name: NumpyCodec.decode_input(given) for given in payload.inputs}
        answers_NO = self._as_trained(_inputs("request", tensors), _inputs("candidate", tensors))
        outputs = {**dict(zip(TASKS, answers_NO.T, strict=True)), "score": answers_NO.sum(axis=1)}
        encoded = [NumpyCodec.encode_output(name, values_N) for name, values_N in outputs.items()]
        return InferenceResponse(model_name=self.name, outputs=encoded)


def _inputs(block: Block, tensors: Tensors) -> Inputs:
    ids, lists, numbers = names_of(block)
    ids_RK = np.stack([tensors[name].ravel() for name in ids], axis=1).astype(np.int64, copy=False)
    numbers_RQ = [tensors[name].ravel() for name in numbers]
    return Inputs.of(
        ids_RK,
        [(_integers(tensors[f"{name}.values"]), _integers(tensors[f"{name}.lengths"])) for name in lists],
        np.stack(numbers_RQ, axis=1).astype(np.float32) if numbers else np.zeros((len(ids_RK), 0), np.float32),
    )


def _integers(values: NDArray[np.generic]) -> NDArray[np.int64]:
    return values.ravel().astype(np.int64, copy=False)
