"""The main path of `python -m training join FILE.yaml`: closed hours of impressions, each a file of rows.

In: a join.yaml. Out: for each hour that is closed and not joined yet its file and its record, in the order of time.
What the logs have that is new is staged first. A job that is killed anywhere leaves files whole or absent, and the
next one goes on. A second one at the same time says so and ends.
"""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import pyarrow.parquet as pq

from training.data.retries import first_line
from training.files import lock_file, refuse_foreign, refuse_within, replace_file
from training.join.counts import table_of, write_counts
from training.join.engines.duckdb_engine import DuckDB
from training.join.engines.engine import Engine
from training.join.expression import ALONE, HOUR_PREFIX, IN, LATER_PREFIX, Expression
from training.join.horizon import horizon_of, shown_time
from training.join.hour_file import Tally, hour_path, joined_hours, read_record, write_hour, write_record
from training.join.plan import HOUR, Plan, hour_name, hour_named, hour_of
from training.join.requests.tombstones import tombstones
from training.join.sources import Source
from training.join.staging import NONE_JOINED, Staging, hours_between, staged_schemas
from training.wording import counted

log = logging.getLogger(__name__)

_MOST_HOURS = 24 * 400
# So many cannot all have been shown to nobody.
_MANY_REQUESTS = 100
# Of an engine that is given none.
_MEMORY = "512MB"
_SPARK_MEMORY = "2GB"


class Settings(NamedTuple):
    """Options of a run. Times have a zone. `memory` is the engine's, such as 512MB, and None its own default."""

    now: datetime | None = None
    until: datetime | None = None
    rejoin: range | None = None
    threads: int = 1
    memory: str | None = None
    engine: Literal["duckdb", "spark"] = "duckdb"
    # The URL of a Spark cluster, None for Spark in this process.
    spark_master: str | None = None


class Joined(NamedTuple):
    """A run's result: the hours that it joined, and the horizon of the logs."""

    hours: list[int]
    horizon: int


class JoinAtWork(ValueError):
    """Another join of the same rows runs."""


def join(plan: Plan, settings: Settings | None = None) -> Joined:
    """Join what is closed. Raises ValueError, for a full disk too, and JoinAtWork where another process does."""
    settings = settings or Settings()
    out = plan.out
    refuse_foreign(out, "folder of joined rows", is_own=(out / "_join").is_dir)
    for folder in (plan.file.impressions, plan.file.events):
        refuse_within(out, folder, "logs")
    with locked(out):
        try:
            return _Join(plan, settings).run()
        except OSError as error:  # what goes wrong with a log, or with an hour's file, is a ValueError already
            reason = error.strerror or first_line(error)
            raise ValueError(f"{out}: cannot be written ({reason}); hours that were joined are kept") from None


def sources_of(plan: Plan) -> dict[str, Source]:
    """Both logs."""
    return {
        "impressions": Source(plan.file.impressions, "events-"),
        "events": Source(plan.file.events, "impressions-"),
    }


def locked(out: Path) -> AbstractContextManager[None]:
    """The rows of a folder for this process alone. Raises JoinAtWork, and ValueError where it cannot be locked."""
    return lock_file(out / "_join" / ".lock", JoinAtWork(f"{out}: another join writes it; wait for its end"))


class _Join:
    """One run."""

    def __init__(self, plan: Plan, settings: Settings) -> None:
        self._plan = plan
        self._settings = settings
        self._now = settings.now or datetime.now(UTC)
        self._own = plan.out / "_join"
        self._sources = sources_of(plan)

    def run(self) -> Joined:
        """Stage what is new, join what is closed, and say what became of it."""
        plan = self._plan
        # Watermarks before files: what they promise is in files that are listed after them.
        horizon = horizon_of(list(self._sources.values()), self._now, self._settings.until)
        joined = joined_hours(plan.out)
        staging = Staging(self._own / "staged")
        staging.read(plan, self._sources, joined[-1] if joined else None)
        self._readings = list(staging.readings.values())
        self._join_anew(staging, joined)
        hours = self._due(staging, joined, horizon)
        if hours:
            with self._engine(Expression(plan)) as engine:
                for hour in hours:
                    self._join_hour(engine, staging, hour, is_first=not joined and hour == hours[0])
                    staging.remove_before(hour_of(hour + HOUR - plan.lookback))
        staging.remove_done()
        content = write_counts(plan.out, staging.changed_files)
        if hours:
            log.info("%s", table_of(content, list(hours)))
        if content["bad_lines"]:
            log.warning("%s in all were left out of the logs", counted(content["bad_lines"], "line"))
        log.info(
            "%s joined, %s; the logs are whole until %s",
            counted(len(hours), "hour"),
            f"{hour_name(hours[0])} to {hour_name(hours[-1])}" if hours else "none was closed and new",
            shown_time(horizon),
        )
        return Joined(list(hours), horizon)

    @contextmanager
    def _engine(self, expression: Expression) -> Iterator[Engine]:
        engine = _engine_of(self._settings, expression, self._own / ".spill")
        try:
            yield engine
        finally:
            engine.close()

    def _join_anew(self, staging: Staging, joined: list[int]) -> None:
        """Join hours again with all that was read since. One that was killed is done first by the next run."""
        wish = self._own / "anew.json"
        hours = self._settings.rejoin
        if wish.is_file():
            first, last = (hour_named(name) for name in json.loads(wish.read_bytes())["hours"])
            hours = hours_between(min(first, *(hours or [first])), max(last, *(hours or [last])))
        if hours is None:
            return
        plan = self._plan
        # Events of these hours may have been counted with the hours after them.
        counted_again = hours_between(hours[0], hours[-1] + HOUR - 1 + plan.window + plan.skew)
        if not joined or hours[0] < joined[0] or counted_again[-1] > joined[-1]:
            what = f"{hour_name(joined[0])} to {hour_name(joined[-1])} are joined" if joined else "none is joined"
            raise ValueError(
                f"{plan.out}: hours {hour_name(hours[0])} to {hour_name(hours[-1])} are joined anew once those up to "
                f"{hour_name(counted_again[-1])} are joined; {what}"
            )
        replace_file(wish, [json.dumps({"hours": [hour_name(hours[0]), hour_name(hours[-1])]}).encode()])
        folder = self._own / ".anew"
        shutil.rmtree(folder, ignore_errors=True)
        again = Staging(folder)
        is_first = hours[0] == joined[0]
        kept = range(NONE_JOINED if is_first else hour_of(hours[0] - plan.lookback), counted_again[-1] + 1)
        again.read_again(plan, self._sources, staging, kept, hours[0])
        if lacking := self._lacking(staging, again, counted_again, is_first=is_first):
            wish.unlink()
            shutil.rmtree(folder)
            raise ValueError(lacking)
        number = max(staging.readings)
        with self._engine(Expression(plan, (hours[0], hours[-1]))) as engine:
            for hour in counted_again:
                marks = {"events_anew": number} | ({"rows_anew": number} if hour in hours else {})
                self._join_hour(engine, again, hour, is_first=hour == joined[0], marks=marks)
        shutil.rmtree(folder)
        staging.accept_contents(self._sources)
        wish.unlink()
        log.info("%s to %s joined anew", hour_name(hours[0]), hour_name(hours[-1]))

    def _lacking(self, staging: Staging, again: Staging, hours: range, *, is_first: bool) -> str | None:
        """The reason why hours cannot be joined again: fewer lines than they were joined of, as files are gone. Lines
        of users that are forgotten are gone too, and nothing tells which."""
        out = self._plan.out
        gone = sum(len(staging.seen(log) - {file.stem for file in self._sources[log].files()}) for log in self._sources)
        if not gone:
            return None
        for hour in hours:
            record = read_record(out, hour)
            past = [one for one in again.hours("events") if one < hour] if is_first and hour == hours[0] else []
            has = {"requests": _rows(again.files("requests", [hour])),
                   "events": _rows(again.files("events", [*past, hour]))}  # fmt: skip
            had = {"requests": int(record["requests"]),
                   "events": sum(sum(of_hour.values()) for of_hour in record["events"].values())}  # fmt: skip
            for kind in ("requests", "events"):
                if has[kind] < had[kind] and not tombstones(out):
                    return (
                        f"{out}: {counted(gone, 'file')} that were read are gone from the logs; hour {hour_name(hour)} "
                        f"was joined of {had[kind]:,} {kind}, and {has[kind]:,} are left: put the files back, or leave "
                        "it as it is"
                    )
                if has[kind] < had[kind]:
                    log.warning(
                        "hour %s was joined of %d %s, and %d are left: some are of forgotten users, others may have "
                        "been in files that are gone", hour_name(hour), had[kind], kind, has[kind],
                    )  # fmt: skip
        return None

    def _due(self, staging: Staging, joined: list[int], horizon: int) -> range:
        """The hours that are closed and not joined, with none left out between them."""
        staged = staging.hours("requests")
        if not joined and not staged:
            return range(0)
        first = joined[-1] + HOUR if joined else min(staged)
        last = hour_of(horizon - self._plan.closes_at(0))
        hours = hours_between(first, last)
        if len(hours) > _MOST_HOURS:
            raise ValueError(
                f"{self._plan.file.impressions}: impressions begin at {shown_time(first)}, {len(hours):,} hours ago; "
                f"at most {_MOST_HOURS:,} are joined at once: move older files away"
            )
        return hours

    def _join_hour(
        self,
        engine: Engine,
        staging: Staging,
        hour: int,
        *,
        is_first: bool,
        marks: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Write the file and the record of an hour. With `marks` it is joined again: the file stays where they say that
        its events alone are counted again."""
        plan = self._plan
        ahead = hours_between(hour, hour + HOUR - 1 + plan.window + plan.skew)
        before = hours_between(hour - plan.lookback, hour - HOUR)
        earlier = [past for past in staging.hours("events") if past < hour] if is_first else []
        files = {
            "requests": staging.files("requests", [*before, hour]),
            "candidates": staging.files("candidates", [*before, hour]),
            "events": staging.files("events", [*earlier, *ahead]),
        }
        for kind in ("requests", "candidates"):
            files[HOUR_PREFIX + kind] = staging.files(kind, [hour])
            files[LATER_PREFIX + kind] = staging.files(kind, ahead[1:])
        engine.begin({name: [self._empty(name.rpartition("_")[2]), *paths] for name, paths in files.items()})
        tally = Tally()
        counts = [count for last, *count in engine.counts() if last == hour or (is_first and last < hour)]
        if marks and "rows_anew" not in marks:
            write_record(plan.out, hour, read_record(plan.out, hour) | {"events": _events(counts), **marks})
            return
        requests, impressions = (_rows(staging.files(kind, [hour])) for kind in ("requests", "candidates"))
        write_hour(plan, hour, tally.count(engine.rows()), f"{engine.name} {engine.version}")
        # A quiet hour may have no event at all.
        if plan.file.rows == "shown" and not tally.shown and (tally.implied or requests >= _MANY_REQUESTS):
            hour_path(plan.out, hour).unlink()
            raise ValueError(
                f"hour {hour_name(hour)}: none of its {counted(impressions, 'impression')} has a shown event; send "
                f"events of type shown, or write `rows: answered` into {plan.path}"
            )
        lost = sum(reading.lost[hour] for reading in self._readings)
        record = {
            "hour": hour_name(hour),
            "requests": requests,
            "lost_requests": lost,
            "impressions": impressions,
            "shown": tally.shown,
            "implied": tally.implied,
            "rows": tally.rows,
            "events": _events(counts),
            **marks,
        }
        write_record(plan.out, hour, record)

    def _empty(self, kind: str) -> Path:
        """A file without rows: it gives a kind of staged files its columns, where no hour has any. Spark reads no
        file whose name begins with a dot."""
        path = self._own / f"empty-{kind}.parquet"
        pq.write_table(staged_schemas(self._plan)[kind].empty_table(), path)
        return path


def _engine_of(settings: Settings, expression: Expression, spill: Path) -> Engine:
    if settings.engine == "duckdb":
        return DuckDB(expression, spill, threads=settings.threads, memory=settings.memory or _MEMORY)
    try:
        from training.join.engines.spark_engine import Spark  # packages that few have
    except ImportError as error:
        raise ValueError(
            f"--engine spark: {first_line(error)}; install the packages of requirements/spark.txt"
        ) from None
    memory = settings.memory or _SPARK_MEMORY
    return Spark(expression, spill, threads=settings.threads, memory=memory, master=settings.spark_master)


def _rows(files: list[Path]) -> int:
    return sum(pq.read_metadata(file).num_rows for file in files)


def _events(counts: list[Any]) -> dict[str, dict[str, int]]:
    """By hour of receipt the events of each class. Those that are in no other are unmatched."""
    found: dict[int, Counter[str]] = {}
    for received, event_class, events in counts:
        of_hour = found.setdefault(received, Counter())
        of_hour["unmatched" if event_class == IN else event_class] += events
        if event_class not in ALONE:
            of_hour["unmatched"] -= events
    return {hour_name(hour): dict(sorted(of_hour.items())) for hour, of_hour in sorted(found.items())}
