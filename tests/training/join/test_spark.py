"""Spark as the engine of a join: the rows and counts of DuckDB, and one line where it cannot start.

`make test-spark` makes the environment with Spark's packages. Elsewhere its tests skip.
"""

import importlib.util
import json
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.training.join.logs import JOIN, START, logs, write
from training.__main__ import main
from training.join.counts import event_counts, impression_counts
from training.join.engines.engine import bytes_given
from training.join.join import Settings, join
from training.join.plan import Plan
from training.join.staging import hours_between

LACKING = [name for name in ("pandas", "py4j", "pyarrow_hotfix", "pyspark") if importlib.util.find_spec(name) is None]
LACKING += ["java"] if shutil.which("java") is None else []
needs_spark = pytest.mark.skipif(bool(LACKING), reason=f"needs Spark; not here: {', '.join(LACKING)}")
# Two hours are closed.
NOW = START + timedelta(hours=3)


def same(plans: dict[str, Plan], hours: int) -> None:
    """Rows and counts of both engines are the same."""
    files = {engine: sorted(plan.out.glob("date=*/*.parquet")) for engine, plan in plans.items()}
    assert len(files["duckdb"]) == hours
    for by_duckdb, by_spark in zip(files["duckdb"], files["spark"], strict=True):
        expected, found = (pq.ParquetFile(path).read() for path in (by_duckdb, by_spark))
        assert by_spark.name == by_duckdb.name
        assert expected.num_rows > 50
        assert found.schema == expected.schema
        assert found.to_pylist() == expected.to_pylist()
        assert b"spark" in pq.read_metadata(by_spark).metadata[b"feedrank.join"]
    assert event_counts(plans["spark"].out) == event_counts(plans["duckdb"].out)
    assert impression_counts(plans["spark"].out) == impression_counts(plans["duckdb"].out)


@needs_spark
@pytest.mark.slow
# Its first query starts a Java machine and compiles for it.
@pytest.mark.timeout(1200)
def test_spark_and_duckdb_give_the_same_rows_and_counts(tmp_path: Path) -> None:
    """From a folder whose name has what Spark reads as patterns. An hour is joined again, with what came late."""
    made = logs(300, 4, seed=31, hours=2)
    half = made._replace(events=made.events[::2])
    plans = {engine: Plan.load(write(tmp_path / f"{engine} *[a] %20", half)) for engine in ("duckdb", "spark")}
    settings = {"duckdb": Settings(now=NOW), "spark": Settings(now=NOW, engine="spark")}
    hours = {engine: join(plan, settings[engine]).hours for engine, plan in plans.items()}
    assert hours["spark"] == hours["duckdb"]
    same(plans, hours=2)
    counts = event_counts(plans["spark"].out)
    assert {kind for of_hour in counts.values() for kind in of_hour} >= {"matched", "late", "ambiguous", "doubled"}
    text = "".join(json.dumps(event) + "\n" for event in made.events[1::2])
    for engine, plan in plans.items():
        (Path(plan.file.events) / "events-9.jsonl").write_text(text, encoding="utf-8")
        rejoin = hours_between(hours[engine][0], hours[engine][0])
        assert join(plan, settings[engine]._replace(rejoin=rejoin)).hours == []
    same(plans, hours=2)
    assert event_counts(plans["spark"].out) != counts


@needs_spark
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_spark_joins_all_that_was_answered(tmp_path: Path) -> None:
    made = logs(100, 4, seed=35, hours=1)
    plans = {engine: Plan.load(write(tmp_path / engine, made, join=JOIN + "rows: answered\n"))
             for engine in ("duckdb", "spark")}  # fmt: skip
    now = START + timedelta(hours=2)
    join(plans["duckdb"], Settings(now=now))
    join(plans["spark"], Settings(now=now, engine="spark"))
    same(plans, hours=1)
    (counts,) = impression_counts(plans["spark"].out).values()
    assert counts["rows"] == counts["impressions"] > counts["shown"] + counts["implied"]


@needs_spark
def test_spark_without_java_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    path = write(tmp_path, logs(20, 2, seed=32))
    assert main(["join", str(path), "--now", NOW.isoformat(), "--engine", "spark"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --engine spark: there is no java; install Java 17 or later, or set JAVA_HOME"
    ]


@needs_spark
def test_spark_with_too_little_memory_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, logs(20, 2, seed=34))
    assert main(["join", str(path), "--now", NOW.isoformat(), "--engine", "spark", "--memory", "100MB"]) == 2
    assert capsys.readouterr().err.splitlines() == ["error: --memory: Spark needs at least 512MiB, got 100MB"]


def test_sizes_are_bytes() -> None:
    assert bytes_given("512MB") == 512_000_000
    assert bytes_given("1.5 gib") == 3 * 2**29
    assert bytes_given("64B") == 64
    for wrong in ("512", "much", "-1GB", "1GB of it"):
        with pytest.raises(ValueError, match="expected a size such as 512MB or 2GiB"):
            bytes_given(wrong)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--engine", "spark"], "install the packages of requirements/spark.txt"),
        (["--engine", "spark", "--spark-master", "nowhere"], "k8s://https://host:443 or yarn, got 'nowhere'"),
        (["--spark-master", "spark://host:7077"], "--spark-master: names a cluster for --engine spark; give both"),
    ],
)
def test_spark_that_is_not_there_is_refused_in_one_line(
    options: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "pyspark", None)
    monkeypatch.delitem(sys.modules, "training.join.engines.spark_engine", raising=False)
    path = write(tmp_path, logs(20, 2, seed=33), join=JOIN)
    assert main(["join", str(path), "--now", NOW.isoformat(), *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert lines[0].endswith(told)
