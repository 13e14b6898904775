"""Features of a catalogue's items as a join's columns have them, found by ids.

In: an item file. Out: for ids the rows of their items, and for rows their values. Values lie in an Arrow file that is
mapped and has no name any more, so memory holds the ids' hashes alone: 24 bytes an item.

Shapes: I items, N ids, U distinct items, B rows of a feature.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.artifact.item_source import keys_of, rows_by_key
from model.features.kinds.columns import Column
from training.items import ItemFile
from training.join.plan import Plan

_BATCH_ITEMS = 65_536


class ItemValues:
    """The items of one file. A feature that the file does not have is null of each."""

    def __init__(self, source: ItemFile, plan: Plan, scratch: Path) -> None:
        """Read the file. `scratch` is written and removed. Raises ValueError."""
        self._schema = candidate_features(plan)
        own = pa.schema([self._schema.field(feature.name) for feature in source.features])
        keys, sizes = [], []
        try:
            with pa.OSFile(str(scratch), "wb") as sink, pa.ipc.new_file(sink, own) as writer:
                for batch in source.batches(_BATCH_ITEMS):
                    columns = [as_arrow(batch.columns[field.name], field.type) for field in own]
                    writer.write_batch(pa.record_batch(columns, schema=own))
                    keys.append(keys_of(batch.ids))
                    sizes.append(len(batch.ids))
            self._file = pa.ipc.open_file(pa.memory_map(str(scratch)))
        except OSError as error:
            raise ValueError(f"{scratch}: cannot be written ({error.strerror})") from None
        finally:
            scratch.unlink(missing_ok=True)
        keys_2I = np.concatenate(keys, axis=1)
        self._rows_I = np.argsort(keys_2I[0], kind="stable")
        self._keys_2I = keys_2I[:, self._rows_I]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """rows_N: each id's item, UNKNOWN where there is none."""
        return rows_by_key(self._keys_2I, self._rows_I, keys_of(ids))

    def values(self, rows_U: NDArray[np.int64]) -> pa.Table:
        """The features of items, whose rows ascend."""
        batch_U = np.searchsorted(self._starts, rows_U, side="right") - 1
        parts = []
        for number in np.unique(batch_U).tolist():
            taken = pa.array(rows_U[batch_U == number] - self._starts[number])
            parts.append(self._file.get_batch(number).take(taken))
        own = pa.Table.from_batches(parts, self._file.schema)
        columns = [
            own.column(field.name) if field.name in own.column_names else _none(field.type, own.num_rows)
            for field in self._schema
        ]
        return pa.table(columns, schema=self._schema)


def candidate_features(plan: Plan) -> pa.Schema:
    """The columns of the features that a catalogue may give."""
    features = [feature for feature in plan.logged if feature.side == "candidate"]
    return pa.schema([(feature.name, plan.feature_type(feature)) for feature in features])


def as_arrow(column: Column, kind: pa.DataType) -> pa.Array:
    """A feature's values as a column of a type. A list that is null is empty."""
    if column.lengths_B is None:
        return pa.array(column.values, kind, mask=column.missing)
    offsets = np.concatenate([[0], np.cumsum(column.lengths_B)]).astype(np.int32)
    flat = pa.array(column.values, kind.value_type, mask=column.missing)
    return pa.ListArray.from_arrays(pa.array(offsets), flat, type=kind)


def _none(kind: pa.DataType, rows: int) -> pa.Array:
    return pa.array([[]] * rows, kind) if pa.types.is_list(kind) else pa.nulls(rows, kind)
