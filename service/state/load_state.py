"""`python -m service load-state`: users of a warehouse, or histories of joined rows, into the state store.

In: Parquet, `<models>/<name>/state.yaml`, and the URL of a store. Out: users in it, batch by batch, each with how far
the job is. Killed anywhere, it goes on there when it is run again. The exit status is 1 where a file or the store is at
fault, and one line says what.
"""

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from model.join_file import FILE_NAME as JOIN_FILE
from model.join_file import JoinFile
from model.state_file import FILE_NAME, StateFile
from model.untrusted_files import fingerprint
from service.state.parquet_users import Labels, Row, exported_rows, files_of, joined_rows, num_rows
from service.state.store import Note, Store, StoreError, Written, read_url_file
from service.state.stores import open_store
from service.state.user_state import UserState, merged, store_name

VARIABLE = "FEEDRANK_STATE"
_TIMEOUT_SECONDS = 5.0
_SAY_SECONDS = 5.0
_TOGETHER = 500


class _Progress(msgspec.Struct):
    """Progress of a job: files that are done, and rows of the one after them."""

    files: int = 0
    rows: int = 0


def main(arguments: Sequence[str]) -> int:
    """Load. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m service load-state", description="Users into the state store.")
    parser.add_argument("parquet", metavar="PARQUET", type=Path, nargs="?", help="a file of users, or a folder of them")
    parser.add_argument("--from-joined", metavar="DIR", type=Path, help="rows that `training join` made, in its place")
    parser.add_argument("--models", metavar="DIR", type=Path, default=Path("models"), help="published models (models)")
    parser.add_argument("--model", metavar="NAME", required=True, help="the model whose state.yaml describes users")
    parser.add_argument("--state", metavar="URL", help=f"the store; with a password in {VARIABLE} or --state-file")
    parser.add_argument("--state-file", metavar="FILE", type=Path, help="file with the URL")
    options = parser.parse_args(arguments)
    if (options.parquet is None) == (options.from_joined is None):
        parser.error("give a Parquet file of users, or --from-joined DIR")
    try:
        url = options.state or os.environ.get(VARIABLE)
        if options.state_file is not None:
            url = read_url_file(options.state_file)
        if not url:
            raise ValueError(f"no store: give --state, --state-file or {VARIABLE}")
        folder = options.models / options.model
        state = StateFile.from_yaml(folder / FILE_NAME)
        store = open_store(url, _TIMEOUT_SECONDS)
        if options.from_joined is None:
            job = _Job(store, options.model, state, files_of(options.parquet), None)
        else:
            labels = _labels(JoinFile.from_yaml(folder / JOIN_FILE))
            job = _Job(store, options.model, state, files_of(options.from_joined), labels)
        users = job.run()
    except (ValueError, StoreError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{users:,} rows of users are in the store")
    return 0


class _Job:
    """One load: all rows of some files into the store."""

    def __init__(
        self, store: Store, model: str, state: StateFile, files: Sequence[Path], labels: Labels | None
    ) -> None:
        self._store = store
        self._model = model
        self._state = state
        self._files = files
        self._labels = labels
        self._said_at = time.monotonic()
        named = repr([(str(file), fingerprint(file)) for file in files])
        self._note = f"load:{model}:{hashlib.sha256(named.encode()).hexdigest()[:32]}"

    def run(self) -> int:
        """Load what is not loaded yet and return how many rows that were. Raises ValueError, StoreError."""
        progress = msgspec.json.decode(self._store.read_note(self._note) or b"{}", type=_Progress)
        totals = [num_rows(file) for file in self._files]
        before = sum(totals[: progress.files]) + progress.rows
        if before:
            print(f"going on after {before:,} of {sum(totals):,} rows", file=sys.stderr)
        loaded, started = 0, time.monotonic()
        for number in range(progress.files, len(self._files)):
            first = progress.rows if number == progress.files else 0
            for done, rows in self._batches(number, first):
                self._write(rows, _Progress(number, done))
                loaded += len(rows)
                self._say(before + loaded, sum(totals), loaded / max(1e-9, time.monotonic() - started))
        self._store.change([], lambda _: {}, Note(self._note, msgspec.json.encode(_Progress())))
        return loaded

    def _batches(self, number: int, first: int) -> Iterator[tuple[int, list[Row]]]:
        """Batches of a file's rows from one on, and the number of rows that are done with each."""
        file, done = self._files[number], 0
        if self._labels is None:
            batches, done = exported_rows(file, self._state, first, time.time()), first
        else:
            batches = joined_rows(file, self._state, self._labels)
        for batch in batches:
            for start in range(0, len(batch), _TOGETHER):
                rows = batch[start : start + _TOGETHER]
                done += len(rows)
                if self._labels is None or done > first:
                    yield done, rows

    def _write(self, rows: Sequence[Row], progress: _Progress) -> None:
        by_name: dict[bytes, list[Row]] = {}
        for row in rows:
            by_name.setdefault(store_name(self._model, row.key), []).append(row)
        ttl_seconds = self._state.ttl.total_seconds()

        def change(blobs: Mapping[bytes, bytes | None]) -> Mapping[bytes, Written | None]:
            return {name: Written(self._changed(blobs[name], given), ttl_seconds) for name, given in by_name.items()}

        self._store.change(list(by_name), change, Note(self._note, msgspec.json.encode(progress)))

    def _changed(self, blob: bytes | None, rows: Sequence[Row]) -> bytes:
        try:
            state = UserState.decoded(blob)
        except ValueError:  # what is no state gives way
            state = UserState.decoded(None)
        for row in rows:
            state.fields.update(row.fields)
            for name, entries in row.lists.items():
                before = state.lists.get(name, []) if row.adds else []
                state.lists[name] = merged(before, entries, self._state.append[name].keep)
        return state.encoded()

    def _say(self, done: int, total: int, rate: float) -> None:
        if time.monotonic() - self._said_at >= _SAY_SECONDS:
            self._said_at = time.monotonic()
            print(f"{done:,} of {total:,} rows, {rate:,.0f} a second", file=sys.stderr)


def _labels(join: JoinFile) -> Labels:
    columns: dict[str, list[str]] = {}
    for column, label in join.labels.items():
        columns.setdefault(label.event, []).append(column)
    return Labels(columns)
