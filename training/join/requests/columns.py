"""The columns of requests as Arrow has them, read in one pass over the lines, or made of lines that were read whole.

In: lines of JSON without their ends, or the objects of lines. Out: `Columns`. Arrow's reader of JSON takes the types of
the schema alone, and makes no object of a value. What it does not take, and whatever it might take otherwise than the
code that checks requests (model.features.kinds), is left to the latter: strings of digits among integers, kinds that
are read by their own code, faults. It says what is wrong.

Shapes: R requests, N candidates of one.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.json

from model.features.kinds import Feature
from training.join.catalogue.item_values import as_arrow
from training.join.plan import Plan
from training.join.requests.line import NEEDED_COLUMNS, Decoders, check_columns, value_of

_FLOATS = pa.list_(pa.float64())
_IDS = pa.list_(pa.string())
_ORDER = pa.list_(pa.int64())


class Columns(NamedTuple):
    """Columns of R requests. All but those of `user` have a list for each, null where the request has none."""

    user: dict[str, pa.Array]
    ids: pa.ListArray
    features: dict[str, pa.ListArray]
    score: pa.ListArray
    tasks: dict[str, pa.ListArray]
    order: pa.ListArray
    propensity: pa.ListArray


class ColumnReader:
    """Reader of the columns of one plan's requests."""

    def __init__(self, plan: Plan, decoders: Decoders) -> None:
        self._plan = plan
        self._decoders = decoders
        features = (*decoders.request_features, *decoders.candidate_features)
        self._is_plain = all(feature.has_fast_path for feature in features)
        user, candidate = (
            [(feature.name, plan.feature_type(feature)) for feature in some]
            for some in (decoders.request_features, decoders.candidate_features)
        )
        self._schema = pa.schema(
            [
                ("user", pa.struct(user)),
                (
                    "candidates",
                    pa.struct(
                        [("id", _IDS), ("features", pa.struct([(name, pa.list_(kind)) for name, kind in candidate]))]
                    ),
                ),
                ("score", _FLOATS),
                ("tasks", pa.struct([(output, _FLOATS) for output in plan.schema.outputs])),
                ("order", _ORDER),
                ("propensity", _FLOATS),
            ]
        )
        self._options = pyarrow.json.ParseOptions(explicit_schema=self._schema, unexpected_field_behavior="ignore")

    def of_text(self, texts: Sequence[bytes]) -> Columns | None:
        """The columns of lines that are JSON. None where one of them is to be read whole."""
        if not self._is_plain:
            return None
        content = b"\n".join(texts)
        reading = pyarrow.json.ReadOptions(use_threads=False, block_size=len(content) + 1)
        try:
            table = pyarrow.json.read_json(pa.BufferReader(content), reading, self._options)
            table.validate(full=True)  # that strings are UTF-8
        except pa.ArrowException:
            return None
        if table.num_rows != len(texts) or any(table.column(name).null_count for name in NEEDED_COLUMNS):
            return None
        columns = {name: pa.concat_arrays(table.column(name).chunks) for name in self._schema.names}
        candidates = columns["candidates"]
        ids, features = (candidates.field(name) for name in ("id", "features"))
        found = Columns(
            _fields(columns["user"]),
            ids,
            _fields(features),
            columns["score"],
            _fields(columns["tasks"]),
            columns["order"],
            columns["propensity"],
        )
        if ids.null_count or features.null_count or not _is_plain(found):
            return None
        return found

    def of_lines(self, lines: Sequence[Any]) -> Columns:
        """The columns of lines that were read whole. Raises ValueError for the first fault."""
        for line in lines:
            check_columns(line)
        user = {
            feature.name: self._checked(feature, [value_of(line.user, place) for line in lines])
            for place, feature in enumerate(self._decoders.request_features)
        }
        candidates = [line.candidates.features for line in lines]
        features = {
            feature.name: self._checked_lists(feature, [value_of(given, place) for given in candidates])
            for place, feature in enumerate(self._decoders.candidate_features)
        }
        return Columns(
            user,
            pa.array([line.candidates.id for line in lines], _IDS),
            features,
            pa.array([line.score for line in lines], _FLOATS),
            {
                output: pa.array([value_of(line.tasks, place) for line in lines], _FLOATS)
                for place, output in enumerate(self._plan.schema.outputs)
            },
            _integers([line.order for line in lines]),
            pa.array([line.propensity for line in lines], _FLOATS),
        )

    def _checked(self, feature: Feature, values: list[Any]) -> pa.Array:
        """A feature's values, checked as the service checks those of a request."""
        column = as_arrow(feature.column(values, self._plan.dtypes.get(feature.name)), self._plan.feature_type(feature))
        if pa.types.is_list(column.type) and any(value is None for value in values):
            is_null = pa.array([value is None for value in values])
            column = pa.ListArray.from_arrays(column.offsets, column.values, column.type, mask=is_null)
        return column

    def _checked_lists(self, feature: Feature, lists: list[list[Any] | None]) -> pa.ListArray:
        """A candidate feature's values, a list for each request that has it."""
        values = self._checked(feature, list(chain.from_iterable(one for one in lists if one is not None)))
        sizes = np.fromiter((0 if one is None else len(one) for one in lists), np.int64, len(lists))
        offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
        is_null = pa.array([one is None for one in lists], pa.bool_())
        return pa.ListArray.from_arrays(offsets, values, mask=is_null)


def _integers(orders: list[list[int]]) -> pa.ListArray:
    try:
        return pa.array(orders, _ORDER)
    except (OverflowError, pa.ArrowInvalid):
        raise ValueError("order: not row numbers of the candidates") from None


def _fields(values: pa.StructArray) -> dict[str, pa.Array]:
    return {field.name: values.field(place) for place, field in enumerate(values.type)}


def _is_plain(columns: Columns) -> bool:
    """True where what need not be null is not, and each number is finite."""
    lists = (columns.ids, columns.score, columns.order, columns.propensity, *columns.tasks.values())
    if any(one.values.null_count for one in lists):
        return False
    candidate_values = (one.values for one in columns.features.values())
    return all(map(_is_finite, _floats((columns.score, columns.propensity, *columns.tasks.values())))) and all(
        map(_is_finite, chain(columns.user.values(), candidate_values))
    )


def _floats(lists: Iterable[pa.ListArray]) -> Iterable[pa.Array]:
    return (one.values for one in lists)


def _is_finite(values: pa.Array) -> bool:
    if not pa.types.is_floating(values.type):
        return True
    return bool(np.isfinite(values.fill_null(0.0).to_numpy(zero_copy_only=False)).all())
