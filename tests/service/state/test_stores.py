"""Both kinds of stores: what is written is read, changes are whole, time runs out, and faults tell no secret."""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from service.state.redis_store import RedisStore
from service.state.sqlite_store import SqliteStore
from service.state.store import Note, Store, StoreError, StoreFullError, StoreTimeoutError, Written, check_url
from service.state.user_state import store_name
from tests.service.state.redis_servers import no_redis, redis_server
from tests.training_data import small_disk

A, B = b"a" * 16, b"b" * 16
PASSWORD = "a-secret-that-nobody-may-see"


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "sqlite":
        yield SqliteStore(str(tmp_path / "state.db"))
        return
    with redis_server(tmp_path) as server:
        yield RedisStore(server.url, 5.0)


def put(store: Store, name: bytes, blob: bytes | None, ttl: float = 1000, note: Note | None = None) -> None:
    store.change([name], lambda _: {name: None if blob is None else Written(blob, ttl)}, note)


def put_many(store: Store, number: int, size: int) -> None:
    for one in range(number):
        put(store, one.to_bytes(16, "big"), os.urandom(size))


def test_what_is_written_is_read(store: Store) -> None:
    assert store.read([A, B]) == [None, None]
    put(store, A, b"one")
    put(store, B, b"\0\xff", note=Note("how far", b"12"))
    assert store.read([B, A, B]) == [b"\0\xff", b"one", b"\0\xff"]
    assert (store.read_note("how far"), store.read_note("other")) == (b"12", None)
    put(store, A, None)
    assert store.read([A]) == [None]


def test_a_change_that_fails_leaves_everything(store: Store) -> None:
    put(store, A, b"one")
    with pytest.raises(ZeroDivisionError):
        store.change([A, B], lambda _: {B: Written(b"two", 1 / 0)}, Note("how far", b"1"))
    assert (store.read([A, B]), store.read_note("how far")) == ([b"one", None], None)


def test_time_runs_out(store: Store) -> None:
    put(store, A, b"short", ttl=0.3)
    put(store, B, b"long")
    deadline = time.monotonic() + 60
    while store.read([A]) != [None]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert store.read([B]) == [b"long"]


def test_changes_beside_each_other_lose_nothing(store: Store) -> None:
    """Counting by several threads, each of which reads, adds and writes."""

    def add(blobs: dict[bytes, bytes | None]) -> dict[bytes, Written]:
        return {A: Written(b"%d" % (int(blobs[A] or b"0") + 1), 1000)}

    def count() -> None:
        for _ in range(25):
            while True:
                with suppress(StoreError):
                    store.change([A], add)  # type: ignore[arg-type]
                    break
        store.close()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read([A]) == [b"100"]


def test_another_process_reads_while_one_writes(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "state.db"))
    put(store, A, b"one")
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM users")
    assert store.read([A]) == [b"one"]
    other.execute("ROLLBACK")
    other.close()


def test_files_that_are_no_store_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder"):
        SqliteStore(str(tmp_path / "nowhere" / "state.db"))
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at as one" * 50)
    with pytest.raises(ValueError, match="no SQLite file"):
        SqliteStore(str(tmp_path / "text.db"))
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE users (id)")
    other.commit()
    other.close()
    with pytest.raises(ValueError, match="of another program"):
        SqliteStore(str(tmp_path / "other.db"))
    newer = sqlite3.connect(tmp_path / "newer.db")
    newer.execute(f"PRAGMA application_id = {0x66656564}")
    newer.execute("PRAGMA user_version = 9")
    newer.commit()
    newer.close()
    with pytest.raises(ValueError, match="its layout is 9"):
        SqliteStore(str(tmp_path / "newer.db"))


def test_a_truncated_file_is_a_fault_of_the_store(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = SqliteStore(str(path))
    for number in range(200):
        name = number.to_bytes(16, "big")
        put(store, name, b"x" * 1000)
    checkpoint = sqlite3.connect(path)
    checkpoint.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    checkpoint.close()
    store.close()
    os.truncate(path, 20_000)
    with pytest.raises(StoreError, match="state file fails"):
        store.read([number.to_bytes(16, "big") for number in range(200)])


def test_a_file_that_is_held_is_a_fault_until_it_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = SqliteStore(str(path))
    put(store, A, b"one")
    store.close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("PRAGMA journal_mode = DELETE")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="locked"):
        store.read([A])
    holder.close()
    assert store.read([A]) == [b"one"]


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 300) as disk:
        store = SqliteStore(str(disk / "state.db"))
        with pytest.raises(StoreFullError):
            put_many(store, 1000, 2000)
        assert len(store.read([(0).to_bytes(16, "big")])[0] or b"") == 2000
        store.close()


@pytest.mark.parametrize(
    "url", ["", "sqlite://", "sqlite://host/file", "postgres://u:p@h/d", "redis://h:port", "/a/path"]
)
def test_wrong_urls_are_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="URL of the store") as refused:
        check_url(url)
    assert "u:p@" not in str(refused.value)


def test_faults_of_redis_say_what_and_no_secret(tmp_path: Path) -> None:
    with redis_server(tmp_path, password=PASSWORD) as server:
        put(RedisStore(server.url, 5.0), A, b"one")
        for url in (server.url.replace(PASSWORD, f"{PASSWORD}x"), f"redis://127.0.0.1:{server.port}/0"):
            with pytest.raises(StoreError, match="refuses the user name or the password") as refused:
                RedisStore(url, 5.0).read([A])
            assert PASSWORD not in f"{refused.value!r} {refused.value.__cause__!r}"
        slow = RedisStore(server.url, 0.05)
        assert slow.read([A]) == [b"one"]
        server.pause()
        with pytest.raises(StoreTimeoutError, match="did not answer within 50 ms"):
            slow.read([A])
        server.go_on()
        server.kill()
        with pytest.raises(StoreError, match="cannot be reached"):
            slow.read([A])
        server.start()  # a look-up right after it finds a server again, with nothing in it
        assert slow.read([A]) == [None]


def test_a_full_redis_takes_no_writes_and_still_reads(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
        store = RedisStore(server.url, 5.0)
        put(store, A, b"one")
        with pytest.raises(StoreFullError, match="maxmemory"):
            put_many(store, 1000, 20_000)
        assert store.read([A]) == [b"one"]


def test_what_is_no_redis_is_a_fault(tmp_path: Path) -> None:
    """A listener that answers nonsense, and one whose blobs are of another type."""
    with no_redis() as url, pytest.raises(StoreError, match="the state store"):
        RedisStore(url, 5.0).read([A])


def test_names_of_users_are_apart() -> None:
    names = {store_name(model, key) for model in ("feed", "fee") for key in ("17", "d\u000017", "17 ", "\u00e9")}
    assert len(names) == 8
