"""Scores one part: the row groups of a file -> a Parquet file with one row for each of theirs, in their order.

Out: the columns that are carried through, `score` (the combined score) and `answer_<task>` for each task, after the
job's prefix, null in rows that broke a rule. With a policy `place` and `dropped` too.
 The file appears whole, and its footer says what it was made of (`found`).

Shapes: B rows of a batch, N good ones, O outputs.
"""

import hashlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model.scorer.batch_scoring import score_requests
from model.scorer.scorer import NonFiniteScoresError
from training.data.files import LogFiles, with_partition
from training.data.retries import retried
from training.files import replace_file
from training.score.job import Job, Part, answer_columns, names_read, place_columns
from training.score.placing import RequestPlacer
from training.score.rows import BadRow, RowReader
from training.score.whole_requests import whole_requests

# What goes through the network at once: large enough for its products, small enough for a core's cache.
BATCH_ROWS = 4096
FAULTS_SHOWN = 20
_KEY = b"feedrank.score"


def found(path: Path) -> dict[str, Any] | None:
    """Footer of an output file: `identity` of its part, rows, bad rows, faults, missing, oov, and of a policy
    dropped, relaxed and the digests of its first and last request. None of a
    file that batch scoring did not write."""
    try:
        metadata = pq.read_metadata(path)
        about = json.loads((metadata.metadata or {})[_KEY])
        return about if about["rows"] == metadata.num_rows else None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


class PartScorer:
    """Scores the parts of a job, one after the other, in one thread."""

    def __init__(self, job: Job, files: LogFiles) -> None:
        self._job = job
        self._files = files
        self._scorer, self._value_model, self._policy = job.load()
        self._names = names_read(job, self._scorer.artifact)
        self._reader = RowReader(self._scorer.schema, job.group_by)

    def score(self, part: Part) -> dict[str, Any]:
        """Write the part's file and return what its footer says. Raises ValueError, with nothing written, for more
        bad rows than the whole job may have."""
        return retried(lambda: self._score(part), self._files.shown(part.file))

    def _score(self, part: Part) -> dict[str, Any]:
        tables: list[pa.Table] = []
        places = _Places(self._files.shown(part.file))
        about: dict[str, Any] = {"identity": part.identity, "rows": part.rows, "bad_rows": 0, "faults": []}
        missing: Counter[str] = Counter()
        oov: Counter[str] = Counter()
        placer = None if self._policy is None else RequestPlacer(self._policy, self._scorer)
        with self._files.opened(part.file) as parquet:
            groups = range(part.first, part.stop)
            places.set_groups(part.first, [parquet.metadata.row_group(group).num_rows for group in groups])
            held = [name for name in self._names if name not in part.file.partition]
            before, first = 0, ""
            batches = parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=held, use_threads=False)
            read: Iterator[pa.Table] = (
                with_partition(pa.Table.from_batches([batch]), part.file, self._names) for batch in batches
            )
            if placer is not None:
                assert self._job.group_by is not None
                read = whole_requests(read, self._job.group_by, places.of_row)
            for table in read:
                answers, bad = self._answers(table, places, missing, oov, placer)
                for fault in bad:
                    about["bad_rows"] += fault.rows
                    about["faults"].append(places.shown(fault, before))
                if about["bad_rows"] > self._job.max_bad_rows:
                    raise ValueError(beyond_budget(about["faults"][0], self._job.max_bad_rows))
                if placer is not None:
                    of_request = table.column(self._job.group_by)
                    first = first or _digest(of_request[0])
                    about["ends"] = [first, _digest(of_request[-1])]
                tables.append(pa.table({**{name: table.column(name) for name in self._job.columns}, **answers}))
                before += table.num_rows
        about["faults"] = about["faults"][:FAULTS_SHOWN]
        about |= {"missing": dict(missing), "oov": dict(oov)}
        if placer is not None:
            about |= {"dropped": dict(placer.dropped), "relaxed": placer.relaxed}
        whole = pa.concat_tables(tables, promote_options="permissive")
        assert whole.num_rows == part.rows, "a batch was lost"
        sink = pa.BufferOutputStream()
        pq.write_table(whole.replace_schema_metadata({_KEY: json.dumps(about)}), sink, compression="zstd")
        replace_file(self._job.out / part.output, (memoryview(sink.getvalue()),))
        return about

    def _answers(
        self,
        table: pa.Table,
        places: "_Places",
        missing: Counter[str],
        oov: Counter[str],
        placer: RequestPlacer | None,
    ) -> tuple[dict[str, pa.Array], list[BadRow]]:
        """The answers' columns of a table's rows, null where a row is bad. Counts into `missing`, `oov`."""
        try:
            good, bad = self._reader.read(table)
        except ValueError as error:
            raise ValueError(f"{places.file}: {error}") from None
        answers_NO = np.zeros((0, len(self._scorer.outputs)), np.float32)
        rows_N, score_N = np.zeros(0, np.int64), np.zeros(0)
        if good is not None:
            try:
                scored = score_requests(self._scorer, good.requests, good.num_requests, good.columns, good.request_of_N)
                with np.errstate(over="ignore", invalid="ignore"):  # the next lines look for it
                    score_N = self._value_model.score(scored.answers_NO)
                if not np.isfinite(score_N).all():
                    raise NonFiniteScoresError(f"value model '{self._job.value_model}' gave a score that is not finite")
            except NonFiniteScoresError as error:
                raise ValueError(f"{places.file}: {error}") from None
            missing.update(scored.missing)
            oov.update(scored.oov)
            rows_N, answers_NO = good.rows_N, scored.answers_NO
        names = answer_columns(self._scorer.outputs, self._job.prefix)
        columns: list[NDArray[Any]] = [score_N, *answers_NO.T]
        spread = [_spread(values_N, rows_N, table.num_rows) for values_N in columns]
        if placer is not None:
            names += place_columns(self._job.prefix)
            spread += placer.place(good, score_N, answers_NO, table.num_rows)
        return dict(zip(names, spread, strict=True)), bad


class _Places:
    """Places of the rows of a part: file, row group and row in that group."""

    def __init__(self, file: str) -> None:
        self.file = file

    def set_groups(self, first: int, counts: list[int]) -> None:
        self._first = first
        self._starts = [0, *accumulate(counts)][:-1]

    def of_row(self, row: int) -> str:
        group = bisect_right(self._starts, row) - 1
        return f"{self.file}: row group {self._first + group}, row {row - self._starts[group]}"

    def shown(self, bad: BadRow, before: int) -> str:
        return f"{self.of_row(before + bad.row)}: column '{bad.column}': {bad.rule}" + (
            f"; {bad.rows} such rows" if bad.rows > 1 else ""
        )


def _digest(request: pa.Scalar) -> str:
    """Digest of a request's name, by which footers are compared. Empty for a null, which names none."""
    return "" if not request.is_valid else hashlib.sha256(str(request.as_py()).encode()).hexdigest()[:16]


def beyond_budget(fault: str, max_bad_rows: int) -> str:
    """A message that names the first bad row. Each file that was written before stays."""
    allowed = f"; more rows are bad than --max-bad-rows {max_bad_rows:,} allows" if max_bad_rows else ""
    return f"{fault}{allowed}"


def _spread(values_N: NDArray[Any], rows_N: NDArray[np.int64], rows: int) -> pa.Array:
    if len(rows_N) == rows:
        return pa.array(np.ascontiguousarray(values_N))
    values_B, is_bad_B = np.zeros(rows, values_N.dtype), np.ones(rows, bool)
    values_B[rows_N], is_bad_B[rows_N] = values_N, False
    return pa.array(values_B, mask=is_bad_B)
