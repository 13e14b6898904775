"""Requests and their answered candidates as the tables that are staged.

In: lines by their scalars, and their columns. Out: `Read`. Of a candidate the values are taken at its row in the
request, in the order answered. Raises ValueError for a request whose parts do not fit each other.

Shapes: R requests, N candidates offered with one, K answered candidates of all of them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from training.join.catalogue.generations import Generations
from training.join.columns import times
from training.join.plan import ANSWER, HOUR, Plan
from training.join.requests.columns import Columns
from training.join.requests.line import Line

Ints = NDArray[np.int64]


class Read(NamedTuple):
    """Requests and their answered candidates, and by hour the requests that were lost."""

    requests: pa.Table
    candidates: pa.Table
    lost: dict[int, int]


def request_columns(plan: Plan) -> pa.Schema:
    """The columns of requests. `_tie` orders those of one time and id."""
    fields = [("_r", "int64"), ("_hour", "int64"), ("_time", "int64"), ("_tie", "int64"), ("_request_id", "string")]
    versions = ("_model_version", "_calibration", "_value_model_version", "_policy_version")
    own = (*versions, "_experiments", "_epochs", "_fell_back", "_user")
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


def hours_of(lines: Sequence[Line]) -> tuple[Ints, Ints]:
    """Times and their hours, in microseconds. Raises ValueError where one is none."""
    time_R, is_wrong_R = times(pa.array([line.time for line in lines], pa.string()))
    if is_wrong_R.any():
        raise ValueError("time: no time with its zone")
    time_R = time_R.to_numpy()
    return time_R, time_R // HOUR * HOUR


def request_table(plan: Plan, lines: Sequence[Line], columns: Columns, time_R: Ints, hour_R: Ints) -> pa.Table:
    """The requests of some lines. `_r` counts from 0."""
    found = {
        "_r": pa.array(np.arange(len(lines))),
        "_hour": pa.array(hour_R),
        "_time": pa.array(time_R),
        "_tie": pa.array(_ties(lines, columns)),
        "_request_id": pa.array([line.request_id for line in lines], pa.string()),
        "_model_version": pa.array([line.model_version for line in lines], pa.string()),
        "_calibration": pa.array([line.calibration for line in lines], pa.string()),
        "_value_model_version": pa.array([line.value_model_version for line in lines], pa.string()),
        "_policy_version": pa.array([line.policy_version for line in lines], pa.string()),
        "_experiments": pa.array([_json(line.experiments) for line in lines], pa.string()),
        "_epochs": pa.array([_json(line.epochs) for line in lines], pa.string()),
        "_fell_back": pa.array([_json(line.fell_back) for line in lines], pa.string()),
        "_user": pa.array([line.user_hash for line in lines], pa.string()),
        "_weight": pa.array([1 / line.share for line in lines if line.share is not None], pa.float64()),
    }
    found |= {name: _without_null_lists(values) for name, values in columns.user.items()}
    schema = request_columns(plan)
    return pa.Table.from_arrays([found[name] for name in schema.names], schema=schema)


def candidate_table(
    plan: Plan, lines: Sequence[Line], columns: Columns, hour_R: Ints, generations: Generations
) -> pa.Table:
    """The answered candidates of some lines, by `_r` from 0."""
    sizes_R, answered_R = _lengths(columns.ids), _lengths(columns.order)
    order_K = _values(columns.order)
    request_K = np.repeat(np.arange(len(lines)), answered_R)
    if not ((order_K >= 0) & (order_K < sizes_R[request_K])).all():
        raise ValueError("order: not row numbers of the candidates")
    row_K = (np.cumsum(sizes_R) - sizes_R)[request_K] + order_K
    if len(row_K) and np.bincount(row_K).max() > 1:
        raise ValueError("order: a row twice")
    position_K = np.arange(len(row_K)) - (np.cumsum(answered_R) - answered_R)[request_K]

    def answered(name: str, lists: pa.ListArray) -> pa.Array:
        return _taken(name, lists, sizes_R, request_K, order_K)

    answered_ids = answered("id", columns.ids)
    names_K = answered_ids.to_pylist() if any(line.catalogue for line in lines) else []
    items = generations.find(lines, names_K, request_K) if names_K else None
    found = {
        "_r": pa.array(request_K),
        "_hour": pa.array(hour_R[request_K]),
        "_c": pa.array(order_K),
        "_candidate_id": answered_ids,
        "_position": pa.array(position_K),
        "_repeats": pa.array(_repeats(answered_ids, request_K)),
        "_score": answered("score", columns.score),
        "_propensity": _propensities(columns.propensity, answered_R, request_K, position_K),
    }
    for output, answers in columns.tasks.items():
        found[ANSWER + output] = answered(f"tasks.{output}", answers)
    for name, values in columns.features.items():
        given_K = answered(f"feature '{name}'", values)
        given_K, is_null_K = _without_null_lists(given_K), given_K.is_null().to_numpy(zero_copy_only=False)
        found[name] = given_K if items is None else items.filled(name, given_K, is_null_K)
    schema = candidate_columns(plan)
    return pa.Table.from_arrays([found[name] for name in schema.names], schema=schema)


def _lengths(lists: pa.ListArray) -> Ints:
    """The length of each list, of one that is null 0."""
    lengths: Ints = np.diff(lists.offsets.to_numpy()).astype(np.int64)
    return lengths


def _values(lists: pa.ListArray) -> Any:
    offsets = lists.offsets.to_numpy()
    return lists.values[offsets[0] : offsets[-1]].to_numpy(zero_copy_only=False)


def _taken(name: str, lists: pa.ListArray, sizes_R: Ints, request_K: Ints, row_K: Ints) -> pa.Array:
    """Of lists of requests the values at rows of them, null where a request has none. Raises ValueError where one has
    not a value for each candidate."""
    starts_R = lists.offsets.to_numpy()[:-1].astype(np.int64)
    is_null_R = lists.is_null().to_numpy(zero_copy_only=False)
    wrong_R = np.flatnonzero(~is_null_R & (_lengths(lists) != sizes_R))
    if len(wrong_R):
        values, size = _lengths(lists)[wrong_R[0]], sizes_R[wrong_R[0]]
        raise ValueError(f"{name}: {values} values for {size} candidates")
    place_K = starts_R[request_K] + row_K
    return lists.values.take(pa.array(place_K, mask=is_null_R[request_K] if is_null_R.any() else None))


def _propensities(lists: pa.ListArray, answered_R: Ints, request_K: Ints, position_K: Ints) -> pa.Array:
    """How probable each candidate was at its place: they stand in the order answered."""
    try:
        return _taken("propensity", lists, answered_R, request_K, position_K)
    except ValueError:
        raise ValueError("propensity: not one a place") from None


def _without_null_lists(values: pa.Array) -> pa.Array:
    """Lists that are null as empty ones."""
    if not pa.types.is_list(values.type) or not values.null_count:
        return values
    return pa.ListArray.from_arrays(values.offsets, values.values, values.type)


def _json(names: dict[str, str] | list[str] | None) -> str | None:
    return msgspec.json.encode(names, order="sorted").decode() if names else None


def _ties(lines: Sequence[Line], columns: Columns) -> Ints:
    """Numbers that follow from the content: the order of requests with one id at one time. They are XXH3-64 of the
    version, the lengths of the candidates' ids, the ids, the scores and the order, as int64 and float64."""
    names = columns.ids.values
    _, offsets, text = names.buffers()
    letters_N = np.frombuffer(offsets, np.int32)[names.offset : names.offset + len(names) + 1]
    lengths, letters = np.diff(letters_N).astype(np.int64).tobytes(), letters_N.tolist()
    text = memoryview(text or b"")
    scores, orders = (lists.values.to_numpy(zero_copy_only=False) for lists in (columns.score, columns.order))
    starts = [lists.offsets.to_numpy().tolist() for lists in (columns.ids, columns.score, columns.order)]
    # -0 is 0: one reader of JSON takes it for an integer.
    score_bytes, order_bytes = (scores + 0.0).tobytes(), orders.tobytes()
    ties = np.empty(len(lines), np.int64)
    for row, line in enumerate(lines):
        (ids, ids_end), (score, score_end), (order, order_end) = (one[row : row + 2] for one in starts)
        content = (
            str(line.model_version).encode(),
            lengths[8 * ids : 8 * ids_end],
            text[letters[ids] : letters[ids_end]],
            score_bytes[8 * score : 8 * score_end],
            order_bytes[8 * order : 8 * order_end],
        )
        ties[row] = xxhash.xxh3_64_intdigest(b"".join(content)) - 2**63
    return ties


def _repeats(ids: pa.Array, request_K: Ints) -> NDArray[np.bool_]:
    """Mask of ids that the same answer has elsewhere."""
    names = ids.dictionary_encode()
    key_K = request_K * max(1, len(names.dictionary)) + names.indices.to_numpy()
    _, inverse_K, counts = np.unique(key_K, return_inverse=True, return_counts=True)
    repeats_K: NDArray[np.bool_] = counts[inverse_K] > 1
    return repeats_K
