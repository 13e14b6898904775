"""Generations of catalogues that answered, and the item files they were built of, as logged requests name them.

In: the model, version and generation of a request, and join.yaml's `models` and `items`. Out: the features of the
candidates that the request does not give. A file that is gone or whose bytes are not those that the catalogue was built
of is refused by its name. Generations of one file, of versions that serve side by side, share it.

Shapes: K answered candidates of all requests, M of them of one item file, U distinct items.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.artifact.item_source import UNKNOWN, item_source
from training.items import ItemFile
from training.join.catalogue.item_values import ItemValues, candidate_features
from training.join.plan import Plan

# Item files of which the ids stay in memory.
_MOST_FILES = 4


class Found(NamedTuple):
    """The items of candidates: `item_K` is the row of `values`, UNKNOWN where the catalogue gave nothing."""

    item_K: NDArray[np.int64]
    values: pa.Table

    def filled(self, name: str, given_K: pa.Array, is_null_K: NDArray[np.bool_]) -> pa.Array:
        """A feature's values, the item's where the request has null."""
        is_taken_K = is_null_K & (self.item_K != UNKNOWN)
        if not is_taken_K.any():
            return given_K
        index_K = np.where(is_taken_K, len(given_K) + self.item_K, np.arange(len(given_K)))
        both = pa.concat_arrays([given_K, *self.values.column(name).chunks])
        return both.take(pa.array(index_K))


class Generations:
    """The catalogues of a log's model."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._sha256: dict[tuple[str, str, str], str] = {}
        self._files: dict[str, ItemValues] = {}

    def open(self, line: Any) -> None:
        """Have the items of a request's generation ready. Raises ValueError."""
        models = self._plan.file.models
        if models is None:
            raise ValueError(
                "features came from a catalogue; write into "
                f"{self._plan.path} `models:`, the folder of the models' versions and catalogues"
            )
        named = (line.model, line.model_version, line.catalogue)
        if not all(isinstance(one, str) for one in named):
            raise ValueError("features came from a catalogue, and no model, version and generation say which")
        if self._sha256.get(named) in self._files:
            return
        source = item_source(Path(models), *named)
        folder = self._plan.file.items
        path = source.path if folder is None else Path(folder) / source.path.name
        self._sha256[named] = source.sha256
        if source.sha256 not in self._files:
            self._files[source.sha256] = self._read(path, source.sha256, named[2])

    def release(self) -> None:
        """Keep the newest files alone."""
        for sha256 in list(self._files)[:-_MOST_FILES]:
            del self._files[sha256]

    def find(self, lines: Sequence[Any], ids_K: Sequence[str], request_K: NDArray[np.int64]) -> Found | None:
        """The items of answered candidates of requests that are open. None where no catalogue gave any."""
        by_file: dict[str, list[int]] = {}
        for number, line in enumerate(lines):
            if line.catalogue:
                sha256 = self._sha256[line.model, line.model_version, line.catalogue]
                by_file.setdefault(sha256, []).append(number)
        if not by_file:
            return None
        item_K = np.full(len(ids_K), UNKNOWN, np.int64)
        tables = [candidate_features(self._plan).empty_table()]
        for sha256, numbers in by_file.items():
            mine_M = np.flatnonzero(np.isin(request_K, numbers))
            rows_M = self._files[sha256].rows_of([ids_K[place] for place in mine_M.tolist()])
            is_known_M = rows_M != UNKNOWN
            rows_U, place = np.unique(rows_M[is_known_M], return_inverse=True)
            if len(rows_U):
                item_K[mine_M[is_known_M]] = sum(table.num_rows for table in tables) + place
                tables.append(self._files[sha256].values(rows_U))
        return Found(item_K, pa.concat_tables(tables))

    def _read(self, path: Path, sha256: str, generation: str) -> ItemValues:
        plan = self._plan
        features = [feature for feature in plan.logged if feature.side == "candidate"]
        try:
            with ItemFile.opened(path, features, plan.dtypes.get) as source:
                if source.sha256 != sha256:
                    raise ValueError(
                        f"{path}: is not the file that generation {generation} of the catalogue was built of (another "
                        "sha256); restore it, and write the items of each catalogue into a new file"
                    )
                values = ItemValues(source, plan, plan.out / "_join" / ".items.arrow")
                source.refuse_changed()
        except ValueError as error:
            raise ValueError(f"features came from generation {generation} of a catalogue: {error}") from None
        return values
