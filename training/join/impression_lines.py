"""Requests of the impression log (format 2) -> Arrow columns that a join computes with.

In: a file of JSON lines, or the Parquet that the service makes of them. Out: tables of requests and of the candidates
that were answered. Features are checked and typed by the code that reads requests (model.features.kinds). What is no
request is counted as a bad line. A line that the join must not use ends it: one of format 1, or of hashes.

Shapes: R requests, K answered candidates of all of them, B rows of a feature.
"""

from collections import Counter
from collections.abc import Iterator, Set
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from model.features.kinds import Feature
from training.data.retries import first_line
from training.join.catalogue.generations import Generations
from training.join.catalogue.item_values import as_arrow
from training.join.columns import times
from training.join.faults import BadLines
from training.join.plan import ANSWER, HOUR, Plan
from training.join.sources import Source, SourceFile, blocks

FORMAT = 2
_NEEDED = ("request_id", "model", "model_version", "score", "tasks", "user", "candidates")
# Requests that become columns together.
_BATCH_REQUESTS = 1024
_BATCH_BYTES = 8 * 2**20
_PARQUET_ROWS = 256


class _Line(msgspec.Struct):
    """A line, by the fields that a join reads. Features are those of the schema."""

    format: int
    time: str
    lost: int | None = None
    request_id: str | None = None
    model: str | None = None
    model_version: str | None = None
    calibration: str | None = None
    value_model_version: str | None = None
    policy_version: str | None = None
    experiments: dict[str, str] | None = None
    user_hash: str | int | None = None
    share: float | None = None
    catalogue: str | bool | None = None
    user: Any = None
    candidates: Any = None
    hashes: Any = None
    score: list[float] | None = None
    tasks: dict[str, list[float]] | None = None
    order: list[int] | None = None
    propensity: list[float] | None = None


class Read(NamedTuple):
    """Requests and their answered candidates, and by hour the requests that were lost."""

    requests: pa.Table
    candidates: pa.Table
    lost: dict[int, int]


def request_columns(plan: Plan) -> pa.Schema:
    """The columns of requests. `_tie` orders those of one time and id."""
    fields = [("_r", "int64"), ("_hour", "int64"), ("_time", "int64"), ("_tie", "int64"), ("_request_id", "string")]
    own = ("_model_version", "_calibration", "_value_model_version", "_policy_version", "_experiments", "_user")
    features = [feature for feature in plan.logged if feature.side != "candidate"]
    return pa.schema(
        [
            *((name, pa.type_for_alias(kind)) for name, kind in fields),
            *((name, pa.string()) for name in own),
            ("_weight", pa.float64()),
            *((feature.name, plan.feature_type(feature)) for feature in features),
        ]
    )


def candidate_columns(plan: Plan) -> pa.Schema:
    """The columns of candidates. `_c` is the row in the request, `_repeats` true of an id that the answer has twice."""
    features = [feature for feature in plan.logged if feature.side == "candidate"]
    return pa.schema(
        [
            ("_r", pa.int64()),
            ("_hour", pa.int64()),
            ("_c", pa.int64()),
            ("_candidate_id", pa.string()),
            ("_position", pa.int64()),
            ("_repeats", pa.bool_()),
            ("_score", pa.float64()),
            ("_propensity", pa.float64()),
            *((ANSWER + output, pa.float64()) for output in plan.schema.outputs),
            *((feature.name, plan.feature_type(feature)) for feature in features),
        ]
    )


class ImpressionReader:
    """Reader of the impressions of one model: of `model`, or where that is None of the only one that the log has."""

    def __init__(self, plan: Plan, model: str | None, bad: BadLines, forgotten: Set[str] = frozenset()) -> None:
        """`forgotten` are the hashes of users whose requests are left out."""
        self.model = model
        self.other_models = 0
        self.forgotten = 0
        self._forgotten = forgotten
        self._plan = plan
        self._bad = bad
        self._generations = Generations(plan)
        self._request_features = [feature for feature in plan.logged if feature.side != "candidate"]
        self._candidate_features = [feature for feature in plan.logged if feature.side == "candidate"]
        self._user = _values_of(self._request_features, Any, None)
        columns = _values_of(self._candidate_features, list[Any] | None, None)
        candidates = msgspec.defstruct("Candidates", [("id", list[str]), ("features", columns)])
        kinds = {"user": self._user, "candidates": candidates}
        fields: list[tuple[str, Any, Any]] = [(name, kind | None, None) for name, kind in kinds.items()]
        self._line: Any = msgspec.defstruct("Line", fields, bases=(_Line,))
        self._decoder = msgspec.json.Decoder(self._line)

    def batches(self, source: Source, file: SourceFile) -> Iterator[Read]:
        """The requests of a file. `_r` counts from 0 in each batch. Raises ValueError for a file that cannot be read
        at all, or that the join must not use."""
        place = source.shown(file)
        waiting: list[tuple[int, Any]] = []
        size = 0
        lines = self._parquet_lines(source, file, place) if file.is_parquet else self._lines(source, file, place)
        for number, text_bytes, line in lines:
            self._refuse_other_formats(line, place, number)
            if line.model is not None and line.model != self._model_of(line, place, number):
                self.other_models += 1
                continue
            if line.user_hash in self._forgotten:
                self.forgotten += 1
                continue
            if line.catalogue:
                self._open_catalogue(line, place, number)
            waiting.append((number, line))
            size += text_bytes
            if len(waiting) >= _BATCH_REQUESTS or size >= _BATCH_BYTES:
                yield from self._converted(waiting, place)
                waiting, size = [], 0
                self._generations.release()
        yield from self._converted(waiting, place)

    def _lines(self, source: Source, file: SourceFile, place: str) -> Iterator[tuple[int, int, Any]]:
        with source.opened(file) as opened:
            for block in blocks(opened):
                for number in block.too_long:
                    self._bad.add(place, number, "a line too long to be a request")
                for number, text in enumerate(block.lines, start=block.first):
                    if text.strip():
                        try:
                            yield number, len(text), self._decoder.decode(text)
                        except (msgspec.MsgspecError, RecursionError) as error:
                            self._bad.add(place, number, f"no request ({error})")

    def _parquet_lines(self, source: Source, file: SourceFile, place: str) -> Iterator[tuple[int, int, Any]]:
        """The rows of the service's own Parquet (service/impressions/parquet.py), whose features are JSON."""
        number = 0
        try:
            with source.opened(file) as opened:
                for batch in pq.ParquetFile(opened).iter_batches(_PARQUET_ROWS, use_threads=False):
                    for row in batch.to_pylist(maps_as_pydicts="strict"):
                        try:
                            yield number, batch.nbytes // batch.num_rows, self._of_row(row)
                        except (msgspec.MsgspecError, RecursionError, KeyError) as error:
                            self._bad.add(place, number, f"no request ({error})")
                        number += 1
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{place}: not a readable Parquet file ({first_line(error)})") from None

    def _of_row(self, row: dict[str, Any]) -> Any:
        row["time"] = row["time"].isoformat()
        row.setdefault("format", 1)
        if row.get("lost") is None and row.get("user") is not None:
            row["user"] = msgspec.json.decode(row["user"])
            features = msgspec.json.decode(row["features"])
            row["candidates"] = {"id": row["candidate_id"], "features": features}
            row["tasks"] = {output: _digits(answers) for output, answers in row["tasks"].items()}
        elif row.get("lost") is None:
            row["hashes"] = True
        return msgspec.convert(row, self._line)

    def _refuse_other_formats(self, line: _Line, place: str, number: int) -> None:
        if line.format != FORMAT:
            raise ValueError(
                f"{place}:{number}: a line of format {line.format}, which does not say what share of requests was "
                f"kept nor the order answered; the join reads format {FORMAT}: move older files out of the log"
            )
        if line.hashes is not None:
            raise ValueError(
                f"{place}:{number}: has hashes in the place of features, so no row can be made of it; log values"
            )

    def _open_catalogue(self, line: _Line, place: str, number: int) -> None:
        try:
            self._generations.open(line)
        except ValueError as error:
            raise ValueError(f"{place}:{number}: {error}") from None

    def _model_of(self, line: _Line, place: str, number: int) -> str | None:
        """The model that is joined."""
        if self.model is None:
            self.model = line.model
        elif self._plan.file.model is None and line.model is not None and line.model != self.model:
            raise ValueError(
                f"{place}:{number}: an impression of model {line.model!r} beside those of {self.model!r}; write "
                f"`model:` into {self._plan.path}, a join is of one model"
            )
        return self.model

    def _converted(self, numbered: list[tuple[int, Any]], place: str) -> Iterator[Read]:
        """Lines as columns. Where one of them is at fault it is found by halving."""
        if not numbered:
            return
        try:
            yield self._read([line for _, line in numbered])
        except ValueError as error:
            if len(numbered) == 1:
                self._bad.add(place, numbered[0][0], str(error))
                return
            middle = len(numbered) // 2
            yield from self._converted(numbered[:middle], place)
            yield from self._converted(numbered[middle:], place)

    def _read(self, lines: list[Any]) -> Read:
        time_R, is_wrong_R = times(pa.array([line.time for line in lines], pa.string()))
        if is_wrong_R.any():
            raise ValueError("time: no time with its zone")
        hours = (time_R.to_numpy() // HOUR * HOUR).tolist()
        lost: dict[int, int] = {}
        kept = []
        for row, (line, hour) in enumerate(zip(lines, hours, strict=True)):
            if line.lost is not None:
                lost[hour] = lost.get(hour, 0) + line.lost
            else:
                _check(line)
                kept.append(row)
        requests = [lines[row] for row in kept]
        times_R = time_R.take(pa.array(kept, pa.int64()))
        hour_R = times_R.to_numpy() // HOUR * HOUR
        return Read(self._requests(requests, times_R, hour_R), self._candidates(requests, hour_R), lost)

    def _requests(self, lines: list[Any], time_R: pa.Array, hour_R: NDArray[np.int64]) -> pa.Table:
        columns = {
            "_r": pa.array(range(len(lines)), pa.int64()),
            "_hour": pa.array(hour_R),
            "_time": time_R,
            "_tie": pa.array([_tie(line) for line in lines], pa.int64()),
            "_request_id": pa.array([line.request_id for line in lines]),
            "_model_version": pa.array([line.model_version for line in lines]),
            "_calibration": pa.array([line.calibration for line in lines], pa.string()),
            "_value_model_version": pa.array([line.value_model_version for line in lines], pa.string()),
            "_policy_version": pa.array([line.policy_version for line in lines], pa.string()),
            "_experiments": pa.array([_experiments(line) for line in lines], pa.string()),
            "_user": pa.array([line.user_hash for line in lines], pa.string()),
            "_weight": pa.array([1 / line.share for line in lines], pa.float64()),
        }
        for place, feature in enumerate(self._request_features):
            values = [getattr(line.user, f"f{place}") for line in lines]
            columns[feature.name] = self._array(feature, values)
        schema = request_columns(self._plan)
        return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)

    def _candidates(self, lines: list[Any], hour_R: NDArray[np.int64]) -> pa.Table:
        sizes = [len(line.candidates.id) for line in lines]
        sizes_R = np.array(sizes, np.int64)
        answered_R = np.fromiter((len(line.order) for line in lines), np.int64, len(lines))
        order_K = np.fromiter(chain.from_iterable(line.order for line in lines), np.int64, int(answered_R.sum()))
        request_K = np.repeat(np.arange(len(lines)), answered_R)
        if not ((order_K >= 0) & (order_K < sizes_R[request_K])).all():
            raise ValueError("order: not row numbers of the candidates")
        row_K = (np.cumsum(sizes_R) - sizes_R)[request_K] + order_K
        if len(np.unique(row_K)) != len(row_K):
            raise ValueError("order: a row twice")
        position_K = np.arange(len(row_K)) - (np.cumsum(answered_R) - answered_R)[request_K]
        taken = pa.array(row_K)

        def answered(name: str, columns: list[Any]) -> pa.Array:
            _check_lengths(name, iter(columns), sizes)
            filled = (column or [None] * size for column, size in zip(columns, sizes, strict=True))
            return pa.array(list(chain.from_iterable(filled)), pa.float64()).take(taken)

        ids = list(chain.from_iterable(line.candidates.id for line in lines))
        answered_ids = pa.array(ids, pa.string()).take(taken)
        found = self._generations.find(lines, answered_ids.to_pylist(), request_K)
        columns = {
            "_r": pa.array(request_K),
            "_hour": pa.array(hour_R[request_K]),
            "_c": pa.array(order_K),
            "_candidate_id": answered_ids,
            "_position": pa.array(position_K),
            "_repeats": pa.array(_repeats(answered_ids.to_pylist(), answered_R)),
            "_score": answered("score", [line.score for line in lines]),
            "_propensity": pa.array(
                list(chain.from_iterable(line.propensity or [None] * len(line.order) for line in lines)), pa.float64()
            ),
        }
        for output in self._plan.schema.outputs:
            columns[ANSWER + output] = answered(f"tasks.{output}", [line.tasks.get(output) for line in lines])
        for place, feature in enumerate(self._candidate_features):
            given = [getattr(line.candidates.features, f"f{place}") for line in lines]
            _check_lengths(f"feature '{feature.name}'", iter(given), sizes)
            filled = ([None] * size if one is None else one for one, size in zip(given, sizes, strict=True))
            values = list(chain.from_iterable(filled))
            given_K = self._array(feature, values).take(taken)
            if found is not None:
                is_null_K = np.fromiter((value is None for value in values), bool, len(values))[row_K]
                given_K = found.filled(feature.name, given_K, is_null_K)
            columns[feature.name] = given_K
        schema = candidate_columns(self._plan)
        return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)

    def _array(self, feature: Feature, values: list[Any]) -> pa.Array:
        """A feature's values, checked as the service checks those of a request."""
        column = feature.column(values, self._plan.dtypes.get(feature.name))
        return as_arrow(column, self._plan.feature_type(feature))


def _digits(answers: list[float | None]) -> list[float | None]:
    """Answers of Parquet, which has 32 bits of each, as the line of JSON has them: by their shortest digits."""
    digits: list[float | None] = pa.array(answers, pa.float32()).cast(pa.string()).cast(pa.float64()).to_pylist()
    return digits


def _values_of(features: list[Feature], kind: Any, default: Any) -> Any:
    """A struct of the features alone, by their places: what else a line has is read over."""
    names = {f"f{place}": feature.name for place, feature in enumerate(features)}
    return msgspec.defstruct("Values", [(name, kind, default) for name in names], rename=names)


def _check(line: Any) -> None:
    """Raise ValueError where a request has not all that a row needs."""
    for name in _NEEDED:
        if getattr(line, name) is None:
            raise ValueError(f"no {name}")
    if line.share is None:
        raise ValueError("no share, the part of requests that the log keeps")
    if not 0 < line.share <= 1:
        raise ValueError("share: not a number above 0, at most 1")
    if line.order is None:
        raise ValueError("no order, the rows as answered")
    if line.propensity is not None and len(line.propensity) != len(line.order):
        raise ValueError("propensity: not one a place")
    if isinstance(line.user_hash, int):
        raise ValueError("user_hash: expected 32 hexadecimal digits")


def _check_lengths(name: str, columns: Iterator[list[Any] | None], sizes: list[int]) -> None:
    """Raise ValueError where a column is there and has not a value for each candidate of its request."""
    for column, size in zip(columns, sizes, strict=True):
        if column is not None and len(column) != size:
            raise ValueError(f"{name}: {len(column)} values for {size} candidates")


def _experiments(line: Any) -> str | None:
    return msgspec.json.encode(line.experiments, order="sorted").decode() if line.experiments else None


def _tie(line: Any) -> int:
    """A number that follows from the content: the order of requests with one id at one time."""
    content = msgspec.json.encode((line.model_version, line.candidates.id, line.score, line.order))
    return xxhash.xxh3_64_intdigest(content) - 2**63


def _repeats(ids: list[str], answered_R: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mask of ids that the same answer has elsewhere."""
    repeats_K = np.zeros(len(ids), bool)
    start = 0
    for answered in answered_R.tolist():
        part = ids[start : start + answered]
        if len(set(part)) != answered:
            counts = Counter(part)
            repeats_K[start : start + answered] = [counts[one] > 1 for one in part]
        start += answered
    return repeats_K
