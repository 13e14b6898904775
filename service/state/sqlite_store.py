"""Users' state in one SQLite file, in WAL mode: several processes of a host read while one writes.

In: a path. Out: a store (service/state/store.py). The file has an application id of its own and the number of its
layout, and any other file is refused. Readers never wait for writers. A writer waits for another up to WRITE_SECONDS.
A transaction survives a kill of the process. Power loss may undo the last ones, whose events are then read again.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from service.state.store import Change, Note, StoreError, StoreFullError

WRITE_SECONDS = 5.0
_APPLICATION_ID = 0x66656564  # "feed"
_LAYOUT = 1
# SQLite's extended result codes have the primary one in their lowest byte.
_PRIMARY_CODE = 0xFF
_AT_ONCE = 500  # names in one statement
_SWEPT_PER_BLOB = 4
_TABLES = """
    CREATE TABLE users (name BLOB PRIMARY KEY NOT NULL, blob BLOB NOT NULL, expires REAL NOT NULL);
    CREATE INDEX users_by_expiry ON users (expires);
    CREATE TABLE notes (name TEXT PRIMARY KEY NOT NULL, text BLOB NOT NULL) WITHOUT ROWID;
"""
_SWEEP = "DELETE FROM users WHERE rowid IN (SELECT rowid FROM users WHERE expires <= ? LIMIT ?)"
_READ_ONE = "SELECT blob FROM users WHERE name = ? AND expires > ?"


class SqliteStore:
    """A store in a file, made where there is none. Raises ValueError where the file is another's, or its folder is not
    there."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._local = threading.local()
        if not self._path.parent.is_dir():
            raise ValueError(f"the store {path}: no folder '{self._path.parent}'; it must exist")
        try:
            self._prepare()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                return  # held by another program for now
            raise ValueError(f"the store {path}: cannot be opened ({error})") from None
        except sqlite3.DatabaseError as error:
            raise ValueError(f"the store {path}: is no SQLite file, or is damaged ({error})") from None

    def read(self, names: Sequence[bytes]) -> list[bytes | None]:
        """The blobs of these names."""
        with self._connection() as connection:
            return _read(connection, names)

    def change(self, names: Sequence[bytes], change: Change, note: Note | None = None) -> None:
        """Change blobs in one transaction, which no other process has one beside. It also removes some of those whose
        time is over, so that the file does not grow with users who are gone."""
        with self._connection() as connection, _transaction(connection):
            changed = change(dict(zip(names, _read(connection, names), strict=True)))
            now = time.time()
            written = [(name, one.blob, now + one.ttl_seconds) for name, one in changed.items() if one is not None]
            connection.executemany("INSERT OR REPLACE INTO users VALUES (?, ?, ?)", written)
            deleted = [(name,) for name, one in changed.items() if one is None]
            connection.executemany("DELETE FROM users WHERE name = ?", deleted)
            connection.execute(_SWEEP, (now, _SWEPT_PER_BLOB * (1 + len(names))))
            if note is not None:
                connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", note)

    def read_note(self, name: str) -> bytes | None:
        """The text of a note."""
        with self._connection() as connection:
            found = connection.execute("SELECT text FROM notes WHERE name = ?", (name,)).fetchone()
        return None if found is None else found[0]

    def close(self) -> None:
        """Close the calling thread's connection."""
        connection = self._local.__dict__.pop("connection", None)
        if connection is not None:
            connection.close()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """The thread's connection. One that failed is opened again."""
        try:
            yield self._local.__dict__.get("connection") or self._connect()
        except sqlite3.Error as error:
            self.close()
            if error.sqlite_errorcode & _PRIMARY_CODE == sqlite3.SQLITE_FULL:
                raise StoreFullError("the disk of the state file is full") from None
            raise StoreError(f"the state file fails: {error}") from None

    def _connect(self) -> sqlite3.Connection:
        try:
            self._prepare()
        except ValueError as error:  # it was another one at the start
            raise StoreError(str(error)) from None
        connection: sqlite3.Connection = self._opened()
        self._local.connection = connection
        return connection

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=WRITE_SECONDS, isolation_level=None)
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    def _prepare(self) -> None:
        """Make the tables of a new file, and refuse another's. Raises ValueError, sqlite3.Error."""
        with closing(self._opened()) as connection:
            if _pragma(connection, "application_id") == _APPLICATION_ID and _pragma(connection, "user_version"):
                self._check_layout(connection)
                return
            with _transaction(connection):
                is_new = not _pragma(connection, "application_id") and not _pragma(connection, "schema_version")
                if is_new:
                    for statement in filter(str.strip, _TABLES.split(";")):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                    connection.execute(f"PRAGMA user_version = {_LAYOUT}")
            self._check_layout(connection)
            connection.execute("PRAGMA journal_mode = WAL")

    def _check_layout(self, connection: sqlite3.Connection) -> None:
        if _pragma(connection, "application_id") != _APPLICATION_ID:
            raise ValueError(f"the store {self._path}: an SQLite file of another program; give the name of a new one")
        layout = _pragma(connection, "user_version")
        if layout != _LAYOUT:
            rule = f"its layout is {layout}, and this service reads {_LAYOUT}"
            raise ValueError(f"the store {self._path}: {rule}; give the name of a new one")


def _read(connection: sqlite3.Connection, names: Sequence[bytes]) -> list[bytes | None]:
    now = time.time()
    if len(names) == 1:
        found = connection.execute(_READ_ONE, (names[0], now)).fetchone()
        return [None if found is None else found[0]]
    blobs: dict[bytes, bytes] = {}
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        marks = ",".join("?" * len(some))
        statement = f"SELECT name, blob FROM users WHERE name IN ({marks}) AND expires > ?"
        blobs.update(connection.execute(statement, (*some, now)))
    return [blobs.get(name) for name in names]


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that holds the one lock of writers from its beginning, undone where it fails."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value
