"""The policy of a batch-scoring job: which it is, and its order of the candidates of each request.

In: good rows of whole requests with their scores. Out: the place of each row, or the stage that dropped it. It is what
a service answers a request that does not explore.

Shapes: B rows of a table, N good ones, O outputs, K places of a request, D columns of a vector.
"""

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.features.encoder import Encoded
from model.features.kinds.columns import Ids
from model.features.raw_values import Words
from model.policies.candidates import ID, CandidateValues
from model.policies.place import Placed, Placing
from model.policies.policies import FILE_NAME, Policies, Policy
from model.scorer.scorer import Scorer
from model.untrusted_files import read_bytes
from training.score.rows import Candidates

PLACE, DROPPED = "place", "dropped"


class PolicyChoice(NamedTuple):
    """A policy by its name, and the file that has it."""

    name: str
    file: Path

    @classmethod
    def of(cls, name: str | None, file: Path | None, group_by: str | None, family: Path) -> "PolicyChoice | None":
        """The choice of a command, by default of the model's own file. Raises ValueError for options that do not go
        together."""
        if name is None:
            if file is not None:
                raise ValueError("--policies: without --policy nothing is placed; name one of the file's policies")
            return None
        if group_by is None:
            raise ValueError("--policy: it places the rows of a request; name the column of requests by --group-by")
        return cls(name, file or family / FILE_NAME)

    def open_policy(self, scorer: Scorer) -> Policy:
        """The policy. Raises ValueError for one that is not in the file, or that a log cannot be placed by."""
        try:
            content = read_bytes(self.file)
        except OSError as error:
            raise ValueError(
                f"{self.file}: cannot be read ({error.strerror}); it has the policies of --policy"
            ) from None
        policies = Policies.from_bytes(content, str(self.file), scorer.schema, scorer.domain)
        if self.name not in policies:
            raise ValueError(
                f"--policy: no '{self.name}' in {self.file}; there are: {', '.join(policies.names) or 'none'}"
            )
        policy = policies[self.name]
        definition = policy.definition
        place = f"{self.file}: {self.name}"
        if definition.seen is not None:
            raise ValueError(f"{place}: seen: a log has no times of a user's entries; name a policy without it")
        reads = {*definition.dedup, *([] if definition.decay is None else [definition.decay.per])}
        if ID in reads and ID not in policy.readable.ids:
            raise ValueError(f"{place}: '{ID}': a log's candidates have no id of their own; name an id feature")
        return policy


class RequestPlacer:
    """Places the requests of a job. `dropped` by stage and `relaxed` count what it did."""

    def __init__(self, policy: Policy, scorer: Scorer) -> None:
        self._policy = policy
        self._scorer = scorer
        self.dropped: Counter[str] = Counter()
        self.relaxed = 0

    def place(
        self, good: Candidates | None, score_N: NDArray[np.float64], answers_NO: NDArray[np.float32], rows: int
    ) -> list[pa.Array]:
        """The columns PLACE (from 0) and DROPPED (a stage) of a table of `rows` rows, null where there is none.
        Candidates of a request stand together."""
        place_B = np.full(rows, -1, np.int64)
        stage_B = np.full(rows, -1, np.int32)
        stages = self._policy.stages
        for rows_of_request, placed in [] if good is None else self._placed(good, score_N, answers_NO):
            place_B[rows_of_request[placed.order_K]] = np.arange(len(placed.order_K))
            for stage, dropped in placed.dropped.items():
                stage_B[rows_of_request[dropped]] = stages.index(stage)
                self.dropped[stage] += len(dropped)
            self.relaxed += placed.relaxed
        names = pa.DictionaryArray.from_arrays(pa.array(stage_B, mask=stage_B < 0), pa.array(stages, pa.string()))
        return [pa.array(place_B, mask=place_B < 0), names.cast(pa.string())]

    def _placed(
        self, good: Candidates, score_N: NDArray[np.float64], answers_NO: NDArray[np.float32]
    ) -> Iterator[tuple[Ids, Placed]]:
        """By request the rows of the table, and their order."""
        values = _Values(good, self._policy, self._scorer)
        starts = np.searchsorted(good.request_of_N, np.arange(good.num_requests + 1)).tolist()
        for start, stop in pairwise(starts):
            one = _RequestValues(values, slice(start, stop))
            answer_by_output = dict(zip(self._scorer.outputs, answers_NO[start:stop].T, strict=True))
            placing = Placing(score_N[start:stop], answer_by_output, one, {}, one.vectors, 0.0, None, "")
            yield good.rows_N[start:stop], self._policy.place_unexplored(placing)


class _Values:
    """What a policy reads of all good rows of a table, each read once."""

    def __init__(self, good: Candidates, policy: Policy, scorer: Scorer) -> None:
        self._good = good
        self._scorer = scorer
        self._rows = len(good.rows_N)
        # Nobody reads these ids (`PolicyChoice.open_policy`).
        self._values = CandidateValues(policy.readable, good.columns, [""] * self._rows)
        self._numbers: dict[str, NDArray[np.float64]] = {}
        self._vectors: dict[str, NDArray[np.float32]] = {}

    def numbers(self, feature: str) -> NDArray[np.float64]:
        """number_N of a feature."""
        if feature not in self._numbers:
            self._numbers[feature] = self._values.numbers(feature)
        return self._numbers[feature]

    def words(self, feature: str) -> Words:
        """Words of the N ids of a feature."""
        return self._values.words(feature)

    def vectors(self, feature: str) -> NDArray[np.float32]:
        """vector_ND of an id feature."""
        if feature not in self._vectors:
            self._vectors[feature] = self._scorer.candidate_vectors(feature, self._encoded)
        return self._vectors[feature]

    @cached_property
    def _encoded(self) -> Encoded:
        return self._scorer.encoder.encode("candidate", self._good.columns, self._rows, as_served=True)


class _RequestValues:
    """Of these, the rows of one request."""

    def __init__(self, values: _Values, rows: slice) -> None:
        self._values = values
        self._rows = rows

    def numbers(self, feature: str) -> NDArray[np.float64]:
        """number_N of a feature."""
        return self._values.numbers(feature)[self._rows]

    def words(self, feature: str) -> Words:
        """Words of the N ids of a feature."""
        words = self._values.words(feature)
        return Words(words.word_B[self._rows], words.has_id_B[self._rows])

    def vectors(self, feature: str) -> NDArray[np.float32]:
        """vector_ND of an id feature."""
        return self._values.vectors(feature)[self._rows]
