"""Calling the ranker as it was trained (benchmarks/as_trained.py): raw ids in numpy arrays -> its tensors -> answers.

What the services around it share, with any parser: ids hashed as in training, vectorised, and the one row of the
request repeated for each candidate, for the network reads whole rows. Imports neither training nor torchrec.

Shapes: R rows of a block (1 of the request), K single-id features, V values of a list feature, Q numbers, N candidates,
T tasks, O outputs.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.reference_feed import BUCKETS
from model.features.encoder import hash_integers

Ids = NDArray[np.int64]


class Inputs(NamedTuple):
    """A block as the module takes it: ids_RK, values [V] and offsets [R] of each list feature, numbers_RQ."""

    ids_RK: Tensor
    values: list[Tensor]
    offsets: list[Tensor]
    numbers_RQ: Tensor

    @classmethod
    def of(cls, ids_RK: Ids, lists: Sequence[tuple[Ids, Ids]], numbers_RQ: NDArray[np.float32]) -> "Inputs":
        """Inputs of raw values. `lists` are each feature's values, one after the other, and lengths."""
        return cls(
            _table_rows(ids_RK),
            [_table_rows(values_V) for values_V, _ in lists],
            [torch.from_numpy(np.cumsum(lengths_R) - lengths_R) for _, lengths_R in lists],
            torch.from_numpy(numbers_RQ),
        )

    def repeated(self, rows: int) -> "Inputs":
        """The one row of this block, `rows` times."""
        return Inputs(
            self.ids_RK.expand(rows, -1),
            [values_V.repeat(rows) for values_V in self.values],
            [torch.arange(rows) * len(values_V) for values_V in self.values],
            self.numbers_RQ.expand(rows, -1),
        )


class AsTrainedFile:
    """The module of a TorchScript file, one torch thread."""

    def __init__(self, path: Path) -> None:
        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*")  # deprecated, as the artifact's own format is
            self._module = torch.jit.load(str(path)).eval()  # type: ignore[no-untyped-call]

    def __call__(self, request: Inputs, candidates: Inputs) -> NDArray[np.float32]:
        """answers_NO of a request's one row and N candidates."""
        with torch.inference_mode():
            answers_NO: NDArray[np.float32] = self._module(
                *request.repeated(len(candidates.ids_RK)), *candidates
            ).numpy()
        return answers_NO


def _table_rows(raw: Ids) -> Tensor:
    return torch.from_numpy((hash_integers(raw) % np.uint64(BUCKETS)).astype(np.int64) + 1)
