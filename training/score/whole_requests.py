"""Tables of a file, cut so that each has whole requests: the rows that have one value of the group column.

In: the file's tables in their order. Out: the same rows in the same order. Rows of one request must stand together.
What is held is one table, the rows of one request, and the names of all before.

Shapes: N rows.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.policies.select_stages import MOST_PLACES
from training.columns import plain
from training.data.usual_types import usual_table


def whole_requests(
    tables: Iterable[pa.Table], group_by: str, place_of: Callable[[int], str], most: int = MOST_PLACES
) -> Iterator[pa.Table]:
    """The tables, cut between requests. `place_of` shows a row of the file. Raises ValueError for a request that comes
    again after another one, and for one of more than `most` rows."""
    earlier: set[object] = set()
    held: pa.Table | None = None
    before = 0

    def refuse(row: int, rule: str) -> ValueError:
        return ValueError(f"{place_of(before + row)}: column '{group_by}': {rule}")

    def remember(starts: list[int], names: list[object]) -> None:
        for start, name in zip(starts, names, strict=True):
            if name is None:  # a bad row, of no request
                continue
            if name in earlier:
                rule = "a request that came before, with other rows between"
                raise refuse(start, f"{rule}; sort by it, as --policy places rows that stand together")
            earlier.add(name)

    for table in tables:
        held = table if held is None else pa.concat_tables([held, table])
        if not held.num_rows:
            continue
        starts, names = _runs(held, group_by)
        remember(starts[:-1], names[:-1])
        for start, stop, name in zip(starts, [*starts[1:], held.num_rows], names, strict=True):
            if stop - start > most and name is not None:
                raise refuse(start, f"a request of more than {most:,} rows; a policy places no more")
        if starts[-1]:
            yield held.slice(0, starts[-1])
            held, before = held.slice(starts[-1]), before + starts[-1]
    if held is not None and held.num_rows:
        remember(*_runs(held, group_by))
        yield held


def _runs(table: pa.Table, group_by: str) -> tuple[list[int], list[object]]:
    """First row of each run of equal values, and the values."""
    column = plain(usual_table(table.select([group_by]))[0].column(0)).combine_chunks()
    try:
        code_N = pc.fill_null(column.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False)
    except pa.ArrowNotImplementedError:
        raise ValueError(f"--group-by: a column of type {column.type} does not name requests") from None
    starts = np.flatnonzero(np.append(True, code_N[1:] != code_N[:-1]))
    return starts.tolist(), column.take(pa.array(starts)).to_pylist()
