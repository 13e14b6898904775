"""Staged lines of both logs: Parquet by hour, read once from the logs and kept until their hours are joined.

`<out>/_join/staged/<n>/` holds what one generation read: `requests`, `candidates` and `events`, each in files
`<hour>.<part>.parquet`, and `read.json`: the files that were read, and counts of what became no row. A generation is
made beside its place and renamed, so a job that is killed has read a file whole or not at all. Of generations whose
lines are all joined, `staged/done.json` keeps the counts alone. `staged/files.json` has sizes, versions and checksums
of the files that were read, so that one that changed later is seen. The number of a generation orders what came
earlier and later: an event or an impression that comes after its hour was joined is late, counted and left out.

Shapes: R requests, E events, B rows of either.
"""

import gc
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from training.files import replace_file
from training.join.catalogue.generations import Generations
from training.join.event_lines import EVENTS, EventReader
from training.join.faults import BadLines
from training.join.impression_lines import ImpressionReader
from training.join.plan import HOUR, Plan, hour_name, hour_named, hour_of
from training.join.reading import Reading
from training.join.requests.tables import candidate_columns, request_columns
from training.join.requests.tombstones import tombstones
from training.join.sources import GoneError, ReadFiles, Source, SourceFile
from training.wording import counted

log = logging.getLogger(__name__)

READ = "read.json"
DONE = "done.json"
FILES = "files.json"
KINDS = ("requests", "candidates", "events")
# Numbers of requests and events are unique over all generations.
_PER_GENERATION = 2**40
# Rows of an hour that are written together.
_FLUSH_BYTES = 48 * 2**20
# Before any hour was joined: earlier than all times.
NONE_JOINED = -(2**62)
# Bytes of files that are read before a generation is kept.
GENERATION_BYTES = 2 * 2**30


class Staging:
    """The staged lines below a folder. One process at a time writes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.readings: dict[int, Reading] = {}
        # Of the run that read.
        self.changed_files = 0
        if (folder / DONE).is_file():
            done = json.loads((folder / DONE).read_bytes())
            self.readings |= {int(number): Reading.of_json(given) for number, given in done.items()}
        for child in sorted(folder.iterdir()) if folder.is_dir() else []:
            if child.is_dir() and child.name.startswith("."):
                shutil.rmtree(child)
            elif child.is_dir():
                self.readings[int(child.name)] = Reading.of_json(json.loads((child / READ).read_bytes()))

    @property
    def model(self) -> str | None:
        """The model whose impressions were read, None before there is one."""
        return next((reading.model for reading in self.readings.values() if reading.model is not None), None)

    def files(self, kind: str, hours: Iterable[int]) -> list[Path]:
        """The staged files of some hours, oldest first."""
        names = {hour_name(hour) for hour in hours}
        found = [file for file in self.folder.glob(f"*/{kind}/*.parquet") if file.name.partition(".")[0] in names]
        return sorted(found, key=lambda file: (int(file.parts[-3]), file.name))

    def hours(self, kind: str) -> set[int]:
        """The hours of which there is something."""
        return {hour_named(file.name.partition(".")[0]) for file in self.folder.glob(f"*/{kind}/*.parquet")}

    def remove_before(self, hour: int) -> None:
        """Remove what hours before one have, which no later hour needs."""
        for kind in KINDS:
            for file in self.folder.glob(f"*/{kind}/*.parquet"):
                if hour_named(file.name.partition(".")[0]) < hour:
                    file.unlink()

    def remove_done(self) -> None:
        """Remove the folders of generations of which nothing is staged any more, once their counts are kept."""
        folders = {int(child.name): child for child in self.folder.glob("[0-9]*")}
        staged = {int(file.parts[-3]) for file in self.folder.glob("*/*/*.parquet")}
        done = {number: folder for number, folder in folders.items() if number not in staged}
        if not done:
            return
        kept = {number: self.readings[number].to_json() for number in sorted(self.readings) if number not in staged}
        replace_file(self.folder / DONE, [json.dumps(kept, indent=1).encode()])
        for folder in done.values():
            hidden = folder.with_name(f".{folder.name}.done")  # whole or gone, whenever the job is killed
            folder.rename(hidden)
            shutil.rmtree(hidden)

    def seen(self, log: str) -> set[str]:
        """The names of the files of a log that were read. A file whose lines became Parquet keeps its name."""
        return {name for reading in self.readings.values() for name in getattr(reading, log)}

    @property
    def read_contents(self) -> ReadFiles:
        """Contents of the files that were read."""
        return ReadFiles(self.folder / FILES)

    def read(self, plan: Plan, sources: dict[str, Source], joined: int | None) -> None:
        """Read what is new, a generation for each GENERATION_BYTES of it. Hours up to `joined` are joined already. A
        file that was read and has changed is counted and said. Its lines stay as they were read."""
        listed = {name: source.files() for name, source in sources.items()}
        files = {name: [file for file in listed[name] if file.stem not in self.seen(name)] for name in listed}
        self._compare_contents(sources, listed)
        bad = BadLines()
        generations = Generations(plan)
        # Lines are trees without cycles, and many: looking for cycles among them takes longer than reading them.
        is_collecting = gc.isenabled()
        gc.disable()
        try:
            self._read_all(plan, sources, files, joined, bad, generations)
        finally:
            if is_collecting:
                gc.enable()
            # What the lines took is the engine's to use.
            pa.default_memory_pool().release_unused()

    def _compare_contents(self, sources: dict[str, Source], listed: dict[str, list[SourceFile]]) -> None:
        contents = self.read_contents
        changed = [
            sources[name].shown(file)
            for name, files in listed.items()
            for file in contents.take(name, sources[name], files, self.seen(name))
        ]
        contents.save()
        self.changed_files = len(changed)
        if changed:
            log.warning(
                "%s of the logs changed after being read, the first: %s; the lines stay as they were read: write new "
                "ones into a file of another name, or read these again by --rejoin of their hours",
                counted(len(changed), "file"),
                changed[0],
            )

    def accept_contents(self, sources: dict[str, Source]) -> None:
        """Keep the contents of the files as they are, once all were read again."""
        contents = self.read_contents
        for name, source in sources.items():
            for file in source.files():
                if file.stem in self.seen(name):
                    contents.accept(name, source, file)
        contents.save()

    def read_again(self, plan: Plan, sources: dict[str, Source], known: "Staging", hours: range, first: int) -> None:
        """Read the files that another staging knows once more, for some hours that are joined again. From `first` on
        what was late is staged too. Before it hours are as they were joined."""
        bad = BadLines()
        reading = Reading(model=known.model)
        model = plan.file.model or known.model
        impressions = ImpressionReader(plan, model, bad, Generations(plan), tombstones(plan.out))
        with self._written(plan, 1) as writer:
            for file, joined in known.read_files("impressions", sources["impressions"]):
                before = None if joined is None else min(joined, first - HOUR)
                with _said_if_gone(reading):
                    for batch in impressions.batches(sources["impressions"], file):
                        writer.add_impressions(batch.requests, batch.candidates, before, reading, hours)
            if impressions.model is not None:
                events = EventReader(plan, impressions.model, bad)
                for file, joined in known.read_files("events", sources["events"]):
                    with _said_if_gone(reading):
                        for table in events.tables(sources["events"], file):
                            writer.add_old_events(table, joined, hours)
            writer.finish(reading)
        self.readings[1] = reading

    def read_files(self, log: str, source: Source) -> Iterator[tuple[SourceFile, int | None]]:
        """The files of a log that were read and are still there, each with the last hour that was joined then."""
        joined = {stem: reading.joined for reading in self.readings.values() for stem in getattr(reading, log)}
        for file in source.files():
            if file.stem in joined:
                yield file, joined[file.stem]

    def _read_all(
        self,
        plan: Plan,
        sources: dict[str, Source],
        files: dict[str, list[SourceFile]],
        joined: int | None,
        bad: BadLines,
        generations: Generations,
    ) -> None:
        batch: list[tuple[str, SourceFile]] = []
        # Impressions first: they say of which model events are read.
        waiting = [(log, file) for log in ("impressions", "events") for file in files[log]]
        size = 0
        for place, (log, file) in enumerate(waiting):
            batch.append((log, file))
            size += file.size
            if size >= GENERATION_BYTES or place == len(waiting) - 1:
                self._read_generation(plan, sources, batch, joined, bad, generations)
                batch, size = [], 0

    def _read_generation(
        self,
        plan: Plan,
        sources: dict[str, Source],
        files: list[tuple[str, SourceFile]],
        joined: int | None,
        bad: BadLines,
        generations: Generations,
    ) -> None:
        number = max(self.readings, default=0) + 1
        before = bad.count
        reading = Reading(joined=joined)
        model = plan.file.model or self.model
        impressions = ImpressionReader(plan, model, bad, generations, tombstones(plan.out))
        with self._written(plan, number) as writer:
            for name, file in files:
                if name == "impressions":
                    with _said_if_gone(reading):
                        for batch in impressions.batches(sources[name], file):
                            reading.lost.update(batch.lost)
                            writer.add_impressions(batch.requests, batch.candidates, joined, reading)
                        reading.impressions.append(file.stem)
            if impressions.model is not None:
                events = EventReader(plan, impressions.model, bad)
                for name, file in files:
                    if name == "events":
                        with _said_if_gone(reading):
                            for table in events.tables(sources[name], file):
                                writer.add_events(table, joined, reading)
                            reading.events.append(file.stem)
                reading.left_out["events_of_other_models"] = events.other_models
            reading.left_out["requests_of_other_models"] = impressions.other_models
            reading.left_out["requests_of_forgotten_users"] = impressions.forgotten
            reading.model = impressions.model
            reading.bad_lines = bad.count - before
            writer.finish(reading)
        self.readings[number] = reading

    @contextmanager
    def _written(self, plan: Plan, number: int) -> Iterator["_Writer"]:
        final = self.folder / str(number)
        partial = self.folder / f".{number}.partial"
        partial.mkdir(parents=True)
        try:
            yield _Writer(plan, partial, number)
            partial.rename(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _said_if_gone(reading: Reading) -> Iterator[None]:
    """Count a file that vanishes before it is opened. It has given no line then."""
    try:
        yield
    except GoneError as error:
        reading.left_out["files_gone"] += 1
        log.warning("%s", error)


class _Writer:
    """The files of one generation."""

    def __init__(self, plan: Plan, folder: Path, number: int) -> None:
        self._plan = plan
        self._folder = folder
        self._schemas = staged_schemas(plan)
        self._requests = self._events = number * _PER_GENERATION
        self._held: dict[tuple[str, int], list[pa.Table]] = {}
        self._bytes: Counter[tuple[str, int]] = Counter()
        self._parts: Counter[tuple[str, int]] = Counter()

    def add_impressions(
        self,
        requests: pa.Table,
        candidates: pa.Table,
        joined: int | None,
        reading: Reading,
        hours: range | None = None,
    ) -> None:
        """Stage requests and their candidates, all but those of joined hours. With `hours` theirs alone."""
        if hours is not None:
            requests, candidates = (_of_hours(table, hours) for table in (requests, candidates))
        for table, kind in ((requests, "requests"), (candidates, "candidates")):
            numbers = pa.array(table.column("_r").to_numpy() + self._requests)
            place = table.schema.get_field_index("_r")
            self._add(kind, table.set_column(place, "_r", numbers), joined)
        if joined is not None:
            hours_R = requests.column("_hour").to_numpy()
            reading.late_requests.update(hours_R[hours_R <= joined].tolist())
        self._requests += requests.num_rows

    def add_events(self, events: pa.Table, joined: int | None, reading: Reading) -> None:
        """Stage events, all but those that are late: received after the last hour of their impression closed, or read
        after it was joined."""
        received_E, hour_E = (events.column(name).to_numpy() for name in ("_received", "_hour"))
        is_late_E = received_E >= hour_E + self._plan.closes_at(0)
        if joined is not None:
            is_late_E |= hour_E <= joined
        for hour, received in zip(hour_E[is_late_E].tolist(), received_E[is_late_E].tolist(), strict=True):
            reading.late_events.setdefault(hour, Counter())[hour_of(received)] += 1
        self._add_numbered(events.filter(pa.array(~is_late_E)), joined)

    def add_old_events(self, events: pa.Table, joined: int | None, hours: range) -> None:
        """Stage events of some hours, late ones included, that were read when `joined` was the last joined hour."""
        self._add_numbered(_of_hours(events, hours), joined)

    def _add_numbered(self, kept: pa.Table, joined: int | None) -> None:
        numbers = pa.array(np.arange(kept.num_rows) + self._events)
        self._events += kept.num_rows
        last = pa.array(np.full(kept.num_rows, NONE_JOINED if joined is None else joined))
        columns = {"_e": numbers, "_joined": last, **{name: kept.column(name) for name in kept.column_names}}
        self._add("events", pa.table(columns).select(EVENTS.names), None)

    def finish(self, reading: Reading) -> None:
        """Write what is held, and the counts last."""
        for kind, hour in sorted(self._held):
            self._flush(kind, hour)
        replace_file(self._folder / READ, [json.dumps(reading.to_json(), indent=1).encode()])

    def _add(self, kind: str, table: pa.Table, joined: int | None) -> None:
        hours_B = table.column("_hour").to_numpy()
        for hour in np.unique(hours_B).tolist():
            if joined is None or hour > joined:
                of_hour = table if (hours_B == hour).all() else table.filter(pa.array(hours_B == hour))
                self._held.setdefault((kind, hour), []).append(of_hour)
                self._bytes[kind, hour] += of_hour.nbytes
                if self._bytes[kind, hour] >= _FLUSH_BYTES:
                    self._flush(kind, hour)
        while sum(self._bytes.values()) >= 2 * _FLUSH_BYTES:
            self._flush(*self._bytes.most_common(1)[0][0])

    def _flush(self, kind: str, hour: int) -> None:
        tables = self._held.pop((kind, hour), [])
        del self._bytes[kind, hour]
        if tables:
            folder = self._folder / kind
            folder.mkdir(exist_ok=True)
            part = self._parts[kind, hour]
            self._parts[kind, hour] += 1
            table = pa.concat_tables(tables).cast(self._schemas[kind])
            path = folder / f"{hour_name(hour)}.{part:06d}.parquet"
            # Most numbers differ, so a dictionary of them is made in vain. Statistics of all columns help no query.
            pq.write_table(
                table, path, compression="lz4", use_dictionary=_repeated(table.schema), write_statistics=["_r", "_hour"]
            )


def _repeated(schema: pa.Schema) -> list[str]:
    """The columns of strings that come again and again, as Parquet names them."""
    texts = [field for field in schema if field.type in (pa.string(), pa.list_(pa.string()))]
    return [
        f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
        for field in texts
        if field.name not in ("_request_id", "_event_id")
    ]


def _of_hours(table: pa.Table, hours: range) -> pa.Table:
    hours_B = table.column("_hour").to_numpy()
    return table.filter(pa.array((hours_B >= hours.start) & (hours_B < hours.stop)))


def staged_schemas(plan: Plan) -> dict[str, pa.Schema]:
    """The columns of each kind of staged file."""
    return {"requests": request_columns(plan), "candidates": candidate_columns(plan), "events": EVENTS}


def hours_between(first: int, last: int) -> range:
    """Hours from one to another, both included."""
    return range(hour_of(first), hour_of(last) + 1, HOUR)
