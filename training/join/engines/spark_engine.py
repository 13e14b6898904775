"""Spark as the engine of a join: `--engine spark`, in this process or on a cluster.

In: the expression of a plan, and the staged files of each hour. Out: its rows in their order, and its counts. The rows
of an hour pass through the driver. It needs the packages of requirements/spark.txt and Java 17 or later. On a cluster
every worker must see the folder `out` under the same path.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyspark
from ibis.backends.pyspark import Backend
from ibis.backends.pyspark.datatypes import PySparkSchema
from ibis.backends.sql.compilers.pyspark import compiler
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from training.join.engines.engine import bytes_given
from training.join.expression import RESOLVED, Expression

# The compiler reads them.
Backend.register_options()
# Spark does not start with less.
_LEAST_MEMORY = 512 * 2**20
# Of the patterns of Hadoop's paths.
_GLOB = re.compile(r"([\\*?\[\]{}])")


class Spark:
    """One session. Raises ValueError where it does not start, or where memory or disk do not suffice."""

    name = "spark"
    version: str = pyspark.__version__

    def __init__(self, expression: Expression, spill: Path, *, threads: int, memory: str, master: str | None) -> None:
        size = bytes_given(memory)
        if size < _LEAST_MEMORY:
            raise ValueError(f"--memory: Spark needs at least 512MiB, got {memory}")
        self._schemas = {name: PySparkSchema.from_ibis(schema) for name, schema in expression.inputs().items()}
        steps = (expression.resolved(), expression.rows(), expression.counts())
        self._resolved, self._rows, self._counts = map(_sql, steps)
        self._kept: DataFrame | None = None
        self._spill = spill
        spill.mkdir(parents=True, exist_ok=True)
        if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
            raise ValueError("--engine spark: there is no java; install Java 17 or later, or set JAVA_HOME")
        builder = SparkSession.builder.master(master or f"local[{threads}]").appName("feedrank join")
        settings = {
            "spark.driver.memory": f"{size // 2**20}m",
            "spark.driver.maxResultSize": f"{size // 2**20}m",
            "spark.local.dir": str(spill),
            "spark.sql.warehouse.dir": f"file://{spill}/warehouse",
            "spark.sql.session.timeZone": "UTC",
            # A number that does not fit is an error, as it is for DuckDB, and no null.
            "spark.sql.ansi.enabled": "true",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            # Its log could show values. What fails is said by the error.
            "spark.log.level": "OFF",
        }
        if master is None:
            settings |= {"spark.sql.shuffle.partitions": str(threads), "spark.driver.bindAddress": "127.0.0.1"}
            settings["spark.driver.host"] = "127.0.0.1"
        try:
            self._session = builder.config(map=settings).getOrCreate()
        except (PySparkException, Py4JError) as error:
            advice = "it needs Java 17 or later" if master is None else f"look whether {master} answers"
            raise ValueError(f"Spark does not start: {_line(error)}; {advice}") from None

    def begin(self, files: Mapping[str, Sequence[Path]]) -> None:
        """Read the files of each table, and keep which impression each event belongs to."""
        if self._kept is not None:
            self._kept.unpersist()
        try:
            for name, paths in files.items():
                read = self._session.read.schema(self._schemas[name])
                read.parquet(*map(_url, paths)).createOrReplaceTempView(name)
            self._kept = self._session.sql(self._resolved).persist()
            self._kept.createOrReplaceTempView(RESOLVED)
        except (PySparkException, Py4JError) as error:
            raise _refusal(error) from None

    def rows(self) -> Iterator[pa.RecordBatch]:
        """The rows of the hour."""
        try:
            table = self._session.sql(self._rows).toArrow()
        except (PySparkException, Py4JError) as error:
            raise _refusal(error) from None
        yield from table.to_batches()

    def counts(self) -> list[tuple[int, int, str, int]]:
        """Last hour of an event's impression, hour of receipt, class, and number of events."""
        try:
            return [tuple(row) for row in self._session.sql(self._counts).collect()]
        except (PySparkException, Py4JError) as error:
            raise _refusal(error) from None

    def close(self) -> None:
        """End the session."""
        with suppress(PySparkException, Py4JError):
            self._session.stop()
        shutil.rmtree(self._spill, ignore_errors=True)


def _sql(expression: Any) -> str:
    text: str = compiler.to_sqlglot(expression).sql(dialect="spark")
    return text


def _url(path: Path) -> str:
    """A file of every machine, whatever the cluster's own file system is."""
    return "file://" + _GLOB.sub(r"\\\1", str(path.absolute()))


def _refusal(error: Exception) -> ValueError:
    return ValueError(f"Spark cannot join: {_line(error)}; give more with --memory, or room for `out`")


def _line(error: Exception) -> str:
    """The line of an error that says what happened. A failure within Java has its trace around it."""
    lines = str(error).splitlines() or [type(error).__name__]
    told = [line for line in lines if "Exception: " in line or "Error: " in line]
    return (told[-1].removeprefix("Caused by: ") if told else lines[0]).strip(": ")
