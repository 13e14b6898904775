"""Histories of users from the event log: each event of a type that a model's state.yaml names becomes an entry.

In: the lines of the event log, from a saved offset on. Out: entries in the state store. Offset and entries are written
in one transaction, and an entry that comes again replaces itself, so a kill anywhere loses and doubles nothing. Every
worker has this thread. The one that holds the lock of the folder does the work, and when it dies another takes over.
"""

import fcntl
import json
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from service.base.log import FieldLogger, Throttle
from service.log_files.folder import LogFolder
from service.metrics.state_metrics import StateMetrics
from service.models.store import ModelStore
from service.models.version import StatefulModel
from service.state.event_tail import read_tail
from service.state.store import Note, Store, StoreError, Written
from service.state.user_state import Entry, UserState, canonical_key, identity_of, merged, store_name

LOCK_FILE = ".state-appender"
_POLL_SECONDS = 0.1
_LEADER_SECONDS = 0.5
_RETRY_SECONDS = 0.5
_NOTE_SECONDS = 5.0
_MOST_BYTES = 2**20
_STOP_SECONDS = 5.0
_OLDEST = timedelta(days=7)
_ID_BYTES = 32

_log = FieldLogger("state")


class _Kind(msgspec.Struct):
    """The fields that a line is looked at for first."""

    model: str
    type: str


class _New(NamedTuple):
    """An entry to be added: to which history of which model's users, and how many it keeps."""

    model: str
    history: str
    keep: int
    ttl_seconds: float
    entry: Entry


_kind_decoder = msgspec.json.Decoder(_Kind)
_line_decoder = msgspec.json.Decoder(dict[str, Any])


class Appender:
    """The appending of one worker. `models` says what is appended, `log` are the events' files."""

    def __init__(self, store: Store, models: ModelStore, log: LogFolder, metrics: StateMetrics) -> None:
        self._store = store
        self._models = models
        self._log = log
        self._metrics = metrics
        self._stopping = threading.Event()
        self._throttle = Throttle()
        self._note = ""
        self._offsets: dict[str, int] = {}
        self._noted: dict[str, int] = {}
        # Bytes of each file that were not appended when the folder was last looked at.
        self._left: dict[str, int] = {}
        self._noted_at = 0.0
        self._behind_since: float | None = None
        self._thread = threading.Thread(target=self._work, name="state-appender", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def _work(self) -> None:
        while not self._models.has_looked:
            if self._stopping.wait(_POLL_SECONDS):
                return
        while not self._stopping.is_set():
            try:
                descriptor = self._take_lock()
            except OSError as error:
                self._log_fault(f"the event log's folder fails ({error.strerror})")
                descriptor = None
            if descriptor is not None:
                try:
                    self._lead()
                finally:
                    os.close(descriptor)
            self._stopping.wait(_LEADER_SECONDS)
        self._store.close()

    def _take_lock(self) -> int | None:
        """The folder's lock, and the name of the folder's note. None where another process has it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._log.path / LOCK_FILE, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            name = os.pread(descriptor, _ID_BYTES, 0)
            if len(name) < _ID_BYTES:
                name = uuid.uuid4().hex.encode()
                os.pwrite(descriptor, name, 0)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        self._note = f"events:{name.decode('ascii', 'replace')}"
        return descriptor

    def _lead(self) -> None:
        """Append until the service ends."""
        offsets: dict[str, int] | None = None
        while not self._stopping.is_set():
            is_behind = False
            try:
                if offsets is None:
                    offsets = self._offsets = self._noted = self._read_offsets()
                is_behind = self._step()
                self._behind_since = self._behind_since if is_behind else None
            except StoreError as error:
                offsets = None  # it may be another store by then
                self._log_fault(str(error))
                with suppress(OSError):  # said by the next step
                    self._say_removed(read_tail(self._log, self._offsets, 0).left)
                self._measure_lag()
                self._stopping.wait(_RETRY_SECONDS)
            except OSError as error:
                self._log_fault(f"the event log cannot be read ({error.strerror})")
                self._stopping.wait(_RETRY_SECONDS)
            self._measure_lag()
            if not is_behind:
                self._stopping.wait(_POLL_SECONDS)
        with suppress(StoreError):
            self._save_offsets()

    def _read_offsets(self) -> dict[str, int]:
        noted = self._store.read_note(self._note)
        try:
            return dict(msgspec.json.decode(noted or b"{}", type=dict[str, int]))
        except msgspec.MsgspecError:
            _log.error("the offsets of the event log are no offsets; it is read from its beginning")
            return {}

    def _step(self) -> bool:
        """Append what has come. Returns whether there may be more. Raises StoreError, OSError."""
        tail = read_tail(self._log, self._offsets, _MOST_BYTES)
        counts: Counter[tuple[str, str]] = Counter()
        new = self._new_entries(tail.lines, counts)
        if tail.lines and self._behind_since is None:
            self._behind_since = time.monotonic()
        if new:
            note = Note(self._note, json.dumps(tail.offsets).encode())
            self._store.change(list(new), lambda blobs: _appended(blobs, new, counts), note)
            self._noted, self._noted_at = tail.offsets, time.monotonic()
        self._offsets = tail.offsets
        self._say_removed(tail.left)
        for (model, result), count in counts.items():
            self._metrics.appends.labels(model, result).inc(count)
        if time.monotonic() - self._noted_at > _NOTE_SECONDS:
            self._save_offsets()
        return sum(map(len, tail.lines)) >= _MOST_BYTES // 2

    def _say_removed(self, left: dict[str, int]) -> None:
        """Say how many files are gone that had bytes to append. What is shipped may be removed for the log's bound."""
        gone = [size for stem, size in self._left.items() if size and stem not in left]
        self._left = left
        if gone:
            self._metrics.missed_bytes.inc(sum(gone))
            _log.error(
                "files of the event log were removed before their events were in users' state; they stay out of it",
                files=len(gone),
                bytes=sum(gone),
            )

    def _save_offsets(self) -> None:
        """Note how far the log is read, where that is further than noted. Raises StoreError."""
        if self._offsets != self._noted:
            self._store.change([], lambda _: {}, Note(self._note, json.dumps(self._offsets).encode()))
            self._noted = self._offsets
        self._noted_at = time.monotonic()

    def _new_entries(self, lines: Sequence[bytes], counts: Counter[tuple[str, str]]) -> dict[bytes, list[_New]]:
        """The entries of lines by their users' names in the store."""
        new: dict[bytes, list[_New]] = {}
        for line in lines:
            try:
                kind = _kind_decoder.decode(line)
            except (msgspec.MsgspecError, RecursionError):
                self._log_fault("a line of the event log is no event; it is left out")
                continue
            model = self._models.stateful_model(kind.model)
            if model is not None and kind.type in model.file.adding_types:
                self._add_entries(new, model, _line_decoder.decode(line), counts)
        return new

    def _add_entries(
        self,
        new: dict[bytes, list[_New]],
        model: StatefulModel,
        event: Mapping[str, Any],
        counts: Counter[tuple[str, str]],
    ) -> None:
        file = model.file
        try:
            given = event.get("user")
            key = canonical_key(event.get(file.key) if given is None else given)
        except ValueError:
            key = None
        for history, append in file.append.items():
            if append.event != event["type"]:
                continue
            value = _value(event.get(append.value), is_integer=history in model.integers)
            if key is None or value is None:
                counts[model.name, "no_user" if key is None else "no_value"] += 1
                continue
            try:
                entry = Entry(value, _time(event), _identity(event))
            except (KeyError, TypeError, ValueError):
                self._log_fault("a line of the event log is no event; it is left out")
                continue
            entries = new.setdefault(store_name(model.name, key), [])
            entries.append(_New(model.name, history, append.keep, file.ttl.total_seconds(), entry))

    def _measure_lag(self) -> None:
        since = self._behind_since
        self._metrics.append_lag_seconds.set(0.0 if since is None else time.monotonic() - since)

    def _log_fault(self, reason: str) -> None:
        if self._throttle.is_due():
            _log.error("events are not appended to users' state; they will be once it works again", reason=reason)


def _appended(
    blobs: Mapping[bytes, bytes | None], new: Mapping[bytes, Sequence[_New]], counts: Counter[tuple[str, str]]
) -> dict[bytes, Written]:
    """The blobs with their new entries. Counts are of the last call."""
    for result in ("appended", "doubled", "old"):
        for model in {one.model for entries in new.values() for one in entries}:
            counts[model, result] = 0
    written = {}
    for name, entries in new.items():
        try:
            state = UserState.decoded(blobs[name])
        except ValueError:  # what is no state gives way
            state = UserState.decoded(None)
        for one in entries:
            before = state.lists.get(one.history, [])
            is_doubled = any(kept.identity == one.entry.identity for kept in before)
            after = state.lists[one.history] = merged(before, [one.entry], one.keep)
            is_kept = any(kept.identity == one.entry.identity for kept in after)
            counts[one.model, "doubled" if is_doubled else "appended" if is_kept else "old"] += 1
        written[name] = Written(state.encoded(), entries[0].ttl_seconds)
    return written


def _value(given: object, *, is_integer: bool) -> int | str | float | None:
    """The value of an entry. None where there is none, or one that the history's feature cannot have."""
    if is_integer and isinstance(given, str):
        try:
            return int(given)
        except ValueError:
            return None
    return given if isinstance(given, int | str | float) and not isinstance(given, bool) else None


def _time(event: Mapping[str, Any]) -> float:
    """Time of an event in Unix seconds, within a week before its receipt. Raises KeyError, TypeError, ValueError."""
    received = _parsed(event["received"])
    given = event.get("time")
    time = received if given is None else _parsed(given)
    return min(max(time, received - _OLDEST), received).timestamp()


def _parsed(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time


def _identity(event: Mapping[str, Any]) -> int:
    if "event_id" in event:
        return identity_of("event", event["event_id"])
    named = (event["request_id"], event["id"], event["type"], event.get("time") or event["received"])
    return identity_of("named", *named)
