"""Generations of catalogues that answered, and the item files they were built of, as logged requests name them.

In: the model, version and generation of a request, and join.yaml's `models` and `items`. Out: the features of the
candidates that the request does not give. A file that is gone or whose bytes are not those that the catalogue was built
of is refused by its name. Generations of one file share it: of versions that serve side by side, or with overlays of
one base.

Shapes: K answered candidates of all requests, M of them of some generations, U distinct items.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.artifact.item_source import UNKNOWN, ItemSource, item_sources
from training.items import ItemFile
from training.join.catalogue.item_values import ItemValues, candidate_features
from training.join.plan import Plan

# Generations of which the items' ids stay in memory.
_MOST_GENERATIONS = 4


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
        # The files of each generation, newest first, of which the first that has an id decides. Last used last.
        self._sources: dict[tuple[str, str, str], list[ItemSource]] = {}
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
        sources = self._sources.pop(named, None) or item_sources(Path(models), *named)[::-1]
        for source in sources:
            if source.sha256 not in self._files:
                self._files[source.sha256] = self._read(source, named[2])
        self._sources[named] = sources

    def release(self) -> None:
        """Keep the files of the generations that were used last alone."""
        for named in list(self._sources)[:-_MOST_GENERATIONS]:
            del self._sources[named]
        needed = {source.sha256 for sources in self._sources.values() for source in sources}
        for sha256 in self._files.keys() - needed:
            del self._files[sha256]

    def find(self, lines: Sequence[Any], ids_K: Sequence[str], request_K: NDArray[np.int64]) -> Found | None:
        """The items of answered candidates of requests that are open. None where no catalogue gave any."""
        by_chain: dict[tuple[str, ...], list[int]] = {}
        removals = set()
        for number, line in enumerate(lines):
            if line.catalogue:
                sources = self._sources[line.model, line.model_version, line.catalogue]
                by_chain.setdefault(tuple(source.sha256 for source in sources), []).append(number)
                removals |= {source.sha256 for source in sources if source.removes}
        if not by_chain:
            return None
        # By file, the places of the candidates whose items it has, and their rows there.
        found: dict[str, list[tuple[NDArray[np.intp], NDArray[np.int64]]]] = {}
        for chain, numbers in by_chain.items():
            left_M = np.flatnonzero(np.isin(request_K, numbers))
            for sha256 in chain:
                rows_M = self._files[sha256].rows_of([ids_K[place] for place in left_M.tolist()])
                is_known_M = rows_M != UNKNOWN
                if sha256 not in removals:
                    found.setdefault(sha256, []).append((left_M[is_known_M], rows_M[is_known_M]))
                left_M = left_M[~is_known_M]
        item_K = np.full(len(ids_K), UNKNOWN, np.int64)
        tables = [candidate_features(self._plan).empty_table()]
        num_items = 0
        for sha256, parts in found.items():
            mine_M, rows_M = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            rows_U, place_M = np.unique(rows_M, return_inverse=True)
            if len(rows_U):
                item_K[mine_M] = num_items + place_M
                num_items += len(rows_U)
                tables.append(self._files[sha256].values(rows_U))
        return Found(item_K, pa.concat_tables(tables))

    def _read(self, source: ItemSource, generation: str) -> ItemValues:
        plan = self._plan
        features = [feature for feature in plan.logged if feature.side == "candidate" and not source.removes]
        folder = plan.file.items
        path = source.path if folder is None else Path(folder) / source.path.name
        try:
            with ItemFile.opened(path, features, plan.dtypes.get) as file:
                if file.sha256 != source.sha256:
                    raise ValueError(
                        f"{path}: is not the file that generation {generation} of the catalogue was built of (another "
                        "sha256); restore it, and write the items of each catalogue into a new file"
                    )
                values = ItemValues(file, plan, plan.out / "_join" / ".items.arrow")
                file.refuse_changed()
        except ValueError as error:
            raise ValueError(f"features came from generation {generation} of a catalogue: {error}") from None
        return values
