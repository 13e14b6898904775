"""DuckDB as the engine of a join: embedded, out of core, with threads and memory that are set.

In: the expression of a plan, and the staged files of each hour. Out: its rows in their order, and its counts. What does
not fit into the memory goes to a folder beside the rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
from ibis.backends.sql.compilers.duckdb import compiler

from training.join.expression import RESOLVED, Expression

_BATCH_ROWS = 16_384
_INTERRUPT_SECONDS = 0.05

_T = TypeVar("_T")


class DuckDB:
    """One connection. Raises ValueError where memory or disk do not suffice.

    It works in a thread of its own. In the thread that takes signals DuckDB would answer one between its tasks, which
    may take minutes, and by an error of its own in place of the end of the job."""

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
        self._thread = ThreadPoolExecutor(1, "duckdb")

    def begin(self, files: Mapping[str, Sequence[Path]]) -> None:
        """Read the files of each table, and keep which impression each event belongs to."""

        def begin() -> None:
            for name, paths in files.items():
                read = self._connection.read_parquet([str(path) for path in paths], union_by_name=True)
                read.create_view(name, replace=True)
            self._connection.execute(f"CREATE OR REPLACE TEMP TABLE {RESOLVED} AS {self._resolved}")

        self._wait_for(begin)

    def rows(self) -> Iterator[pa.RecordBatch]:
        """The rows of the hour."""
        batches = self._wait_for(lambda: self._connection.sql(self._rows).to_arrow_reader(_BATCH_ROWS))
        while (batch := self._wait_for(lambda: next(batches, None))) is not None:
            yield batch

    def counts(self) -> list[tuple[int, int, str, int]]:
        """Last hour of an event's impression, hour of receipt, class, and number of events."""
        return self._wait_for(lambda: self._connection.sql(self._counts).fetchall())

    def close(self) -> None:
        """End the connection."""
        self._thread.shutdown()
        with suppress(duckdb.Error):
            self._connection.close()

    def _wait_for(self, call: Callable[[], _T]) -> _T:
        """The result of a call in DuckDB's thread. Where this one is ended meanwhile, the call is interrupted first."""
        called = self._thread.submit(call)
        try:
            return called.result()
        except duckdb.Error as error:
            raise ValueError(
                f"DuckDB cannot join: {_line(error)}; give more with --memory, or room for `out`"
            ) from None
        finally:
            # Again and again: one that comes between two statements of a call stops neither.
            while not called.done():
                self._connection.interrupt()
                wait([called], _INTERRUPT_SECONDS)


def _sql(expression: Any) -> str:
    text: str = compiler.to_sqlglot(expression).sql(dialect="duckdb")
    return text


def _line(error: duckdb.Error) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
