"""DuckDB as the engine of a join: embedded, out of core, with threads and memory that are set.

In: the expression of a plan, and the staged files of each hour. Out: its rows in their order, and its counts. What does
not fit into the memory goes to a folder beside the rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from ibis.backends.sql.compilers.duckdb import compiler

from training.join.expression import RESOLVED, Expression
from training.stopping import end_kept

_BATCH_ROWS = 16_384


class DuckDB:
    """One connection. Raises ValueError where memory or disk do not suffice."""

    name = "duckdb"
    version = duckdb.__version__

    def __init__(self, expression: Expression, spill: Path, *, threads: int, memory: str) -> None:
        steps = (expression.resolved(), expression.rows(), expression.counts())
        self._resolved, self._rows, self._counts = map(_sql, steps)
        spill.mkdir(parents=True, exist_ok=True)
        config: dict[str, str | bool | int | float | list[str]] = {
            "threads": threads,
            "memory_limit": memory,
            "temp_directory": str(spill),
            "preserve_insertion_order": False,
            # Nothing of a join is anywhere but in the files that it is given.
            "autoload_known_extensions": False,
            "autoinstall_known_extensions": False,
        }
        try:
            self._connection = duckdb.connect(config=config)
        except duckdb.Error as error:
            raise ValueError(f"DuckDB does not start: {_line(error)}") from None

    def begin(self, files: Mapping[str, Sequence[Path]]) -> None:
        """Read the files of each table, and keep which impression each event belongs to."""
        with _refusals():
            for name, paths in files.items():
                read = self._connection.read_parquet([str(path) for path in paths], union_by_name=True)
                read.create_view(name, replace=True)
            self._connection.execute(f"CREATE OR REPLACE TEMP TABLE {RESOLVED} AS {self._resolved}")

    def rows(self) -> Iterator[pa.RecordBatch]:
        """The rows of the hour."""
        with _refusals():
            yield from self._connection.sql(self._rows).to_arrow_reader(_BATCH_ROWS)

    def counts(self) -> list[tuple[int, int, str, int]]:
        """Last hour of an event's impression, hour of receipt, class, and number of events."""
        with _refusals():
            return self._connection.sql(self._counts).fetchall()

    def close(self) -> None:
        """End the connection."""
        with suppress(duckdb.Error):
            self._connection.close()


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        with end_kept():
            yield
    except duckdb.Error as error:
        raise ValueError(f"DuckDB cannot join: {_line(error)}; give more with --memory, or room for `out`") from None


def _sql(expression: Any) -> str:
    text: str = compiler.to_sqlglot(expression).sql(dialect="duckdb")
    return text


def _line(error: duckdb.Error) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
