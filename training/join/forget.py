"""`python -m training forget FILE.yaml --user KEY`: what logs and joined rows hold of one user, removed.

In: a join.yaml, a user, the key of user hashes. Out: both logs' closed files, staged lines and joined files without
that user, each replaced by a rename, and a tombstone that later joins obey. Events go first: they are found by their
user and by the request ids of the user's impressions. A job that is killed is run again, and ends with the same files.
Files that writers still write are left, counted and said: what they bring is joined without the user. While it works
the service makes no Parquet of the log: it would be of lines as they were.
"""

import fcntl
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from model.untrusted_files import open_regular
from model.user import user_hash
from training.files import replace_file
from training.join.join import locked, sources_of
from training.join.plan import Plan
from training.join.requests.tombstones import add_tombstone
from training.join.sources import LINES, PARQUET, Source, SourceFile, blocks
from training.join.staging import Staging
from training.wording import counted

log = logging.getLogger(__name__)

# Of the service's conversion (service/impressions/to_parquet.py).
_CONVERSION_LOCK = ".impressions-to-parquet.lock"


def forget(plan: Plan, user: str, key: bytes) -> dict[str, int]:
    """Remove a user. Returns how many requests, events and rows went. Raises ValueError."""
    sources = sources_of(plan)
    for source in sources.values():
        if not isinstance(source.system, LocalFileSystem):
            raise ValueError(f"{source.place}: is not on this machine; forget works on local files")
    with locked(plan.out), _without_conversion(Path(sources["impressions"].root)):
        return _Forgetting(plan, sources, user, user_hash(key, user)).run()


@contextmanager
def _without_conversion(folder: Path) -> Iterator[None]:
    """The impressions of a folder for this process and their writers alone, once a running conversion has ended.
    Raises ValueError."""
    try:
        descriptor = os.open(folder / _CONVERSION_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ValueError(
            f"{folder / _CONVERSION_LOCK}: cannot be opened ({error.strerror}), and it keeps the service from making "
            "Parquet of lines that are to go; forget as the user that the service runs as"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for left in folder.glob(".impressions-*.parquet.part"):  # of a conversion that was killed
            left.unlink()
        yield
    finally:
        os.close(descriptor)


class _Forgetting:
    """One user."""

    def __init__(self, plan: Plan, sources: dict[str, Source], user: str, hashed: str) -> None:
        self._plan = plan
        self._sources = sources
        self._user = user
        self._hashed = hashed
        self._ids: set[str] = set()
        self._gone: Counter[str] = Counter()
        self._unread = 0
        self._vanished: set[Path] = set()
        self._contents = Staging(plan.out / "_join" / "staged").read_contents

    def run(self) -> dict[str, int]:
        out = self._plan.out
        add_tombstone(out, self._hashed)
        impressions, events = (_local_files(self._sources[log]) for log in ("impressions", "events"))
        rows = sorted(out.glob("date=*/*.parquet"))
        for path in impressions:
            with self._unless_gone(path):
                self._ids.update(_request_ids(path, self._hashed))
        for path in rows:
            self._ids.update(_ids_of(pq.read_table(path, columns=["_user", "_request_id"]), "_user", self._hashed))
        for path in sorted((out / "_join" / "staged").glob("*/requests/*.parquet")):
            self._ids.update(_ids_of(pq.read_table(path, columns=["_user", "_request_id"]), "_user", self._hashed))
        for path in events:
            self._rewrite("events", path, self._is_event_of, self._event_mask)
        self._forget_staged(out / "_join" / "staged")
        for path in rows:
            self._gone["rows"] += _rewrite_parquet(path, self._row_mask)
        for path in impressions:
            self._rewrite("requests", path, self._is_request_of, self._request_mask)
        left = self._left({path.with_suffix("") for path in (*impressions, *events)})
        if left:
            log.warning(
                "%s of the logs are still written, or were closed meanwhile; run it again once they are closed",
                counted(left, "file"),
            )
        if self._vanished:
            log.warning("%s of the logs were removed meanwhile, by others", counted(len(self._vanished), "file"))
        if not self._gone.total():
            log.warning(
                "nothing is of this user under this key: was the user forgotten before, is --user as a request has it, "
                "and is it the --user-hash-key of the service?"
            )
        if self._unread:
            log.warning(
                "%s of the logs cannot be read and stay; look whether the user is in them",
                counted(self._unread, "line"),
            )
        gone = {name: self._gone[name] for name in ("requests", "events", "rows")}
        log.info("forgotten: %s", ", ".join(counted(count, name.removesuffix("s")) for name, count in gone.items()))
        return gone

    def _left(self, done: set[Path]) -> int:
        """The number of files that had no name yet when the work began, by their paths without their ends."""
        # Open ones first: one that is closed meanwhile is among the closed ones.
        opened = {path for source in self._sources.values() for path in _open_files(source)}
        closed = {path.with_suffix("") for source in self._sources.values() for path in _local_files(source)}
        names = {path.with_name(path.name[1:].removesuffix(".part")).with_suffix("") for path in opened}
        return len((names | closed) - done)

    @contextmanager
    def _unless_gone(self, path: Path) -> Iterator[None]:
        """Go on where a file is gone: the service removes the oldest ones to keep a log within its bound."""
        try:
            yield
        except (OSError, ValueError):
            if path.exists():
                raise
            self._vanished.add(path)

    def _rewrite(
        self,
        name: str,
        path: Path,
        is_mine: Callable[[dict[str, Any]], bool],
        mask_of: Callable[[pa.Table], pa.ChunkedArray],
    ) -> None:
        """Replace a file of a log by one without the user's lines, and count them, and those that nobody can read."""
        with self._unless_gone(path):
            if path.name.endswith(PARQUET):
                self._gone[name] += _rewrite_parquet(path, mask_of, lambda size: self._accept(name, path, size))
            else:
                self._rewrite_lines(name, path, is_mine)

    def _rewrite_lines(self, name: str, path: Path, is_mine: Callable[[dict[str, Any]], bool]) -> None:
        gone = size = 0
        for text, line in _lines(path):
            if line is None:
                self._unread += 1
            if line is not None and is_mine(line):
                gone += 1
            else:
                size += len(text) + 1
        if gone:
            self._accept(name, path, size)
            kept = (text + b"\n" for text, line in _lines(path) if line is None or not is_mine(line))
            replace_file(path, kept)
        self._gone[name] += gone

    def _accept(self, name: str, path: Path, size: int) -> None:
        """Have later joins know a file that is about to be replaced."""
        log_name = "impressions" if name == "requests" else name
        place = path.relative_to(self._sources[log_name].root).as_posix()
        self._contents.expect(log_name, SourceFile(place, str(path), size))
        self._contents.save()

    def _forget_staged(self, folder: Path) -> None:
        numbers: set[int] = set()
        for path in sorted(folder.glob("*/requests/*.parquet")):
            table = pq.read_table(path)
            mine = table.filter(pc.equal(table.column("_user"), self._hashed))
            numbers.update(mine.column("_r").to_pylist())
        for path in sorted(folder.glob("*/candidates/*.parquet")):
            _rewrite_parquet(path, lambda table: pc.is_in(table.column("_r"), pa.array(sorted(numbers), pa.int64())))
        for path in sorted(folder.glob("*/events/*.parquet")):
            _rewrite_parquet(path, lambda table: self._has_id(table.column("_request_id")))
        for path in sorted(folder.glob("*/requests/*.parquet")):
            _rewrite_parquet(path, self._row_mask)

    def _has_id(self, ids: pa.ChunkedArray) -> pa.ChunkedArray:
        return pc.is_in(ids.cast(pa.string()), pa.array(sorted(self._ids), pa.string()))

    def _row_mask(self, table: pa.Table) -> pa.ChunkedArray:
        return pc.fill_null(pc.equal(table.column("_user"), self._hashed), False)

    def _request_mask(self, table: pa.Table) -> pa.ChunkedArray:
        if "user_hash" not in table.column_names or not pa.types.is_string(table.schema.field("user_hash").type):
            return pa.chunked_array([pa.array([False] * table.num_rows, pa.bool_())])
        return pc.fill_null(pc.equal(table.column("user_hash"), self._hashed), False)

    def _event_mask(self, table: pa.Table) -> pa.ChunkedArray:
        mask = pc.fill_null(self._has_id(table.column("request_id")), False)
        if "user" in table.column_names:
            mine = pc.equal(table.column("user").cast(pa.string()), self._user)
            mask = pc.or_(mask, pc.fill_null(mine, False))
        return mask

    def _is_request_of(self, line: dict[str, Any]) -> bool:
        return line.get("user_hash") == self._hashed

    def _is_event_of(self, line: dict[str, Any]) -> bool:
        user = line.get("user")
        is_user = str(user) == self._user if type(user) in (int, str) else False
        return is_user or line.get("request_id") in self._ids


def _local_files(source: Source) -> list[Path]:
    """The closed files of a log, those that became Parquet in both kinds."""
    root = Path(source.root)
    names = [path.relative_to(root) for path in sorted(root.rglob("*")) if path.name.endswith((*LINES, PARQUET))]
    return [root / name for name in names if source.is_of_log(name.as_posix())]


def _open_files(source: Source) -> list[Path]:
    return [path for path in Path(source.root).glob(".*.part") if path.name[1:].removesuffix(".part").endswith(LINES)]


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    with open_regular(path) as opened:
        for block in blocks(opened):
            for text in block.lines:
                try:
                    line = msgspec.json.decode(text)
                except (msgspec.MsgspecError, RecursionError):
                    line = None
                yield text, line if isinstance(line, dict) else None


def _request_ids(path: Path, hashed: str) -> set[str]:
    """The request ids of a user's impressions."""
    if path.name.endswith(PARQUET):
        names = pq.read_schema(path).names
        if "user_hash" not in names:
            return set()
        return _ids_of(pq.read_table(path, columns=["user_hash", "request_id"]), "user_hash", hashed)
    mine = (line for _, line in _lines(path) if line is not None and line.get("user_hash") == hashed)
    return {line["request_id"] for line in mine if isinstance(line.get("request_id"), str)}


def _ids_of(table: pa.Table, column: str, hashed: str) -> set[str]:
    users = table.column(column)
    if not pa.types.is_string(users.type):
        return set()
    mine = table.filter(pc.equal(users, hashed))
    return {name for name in mine.column(table.column_names[-1]).to_pylist() if name is not None}


def _rewrite_parquet(
    path: Path, mask_of: Callable[[pa.Table], pa.ChunkedArray], before: Callable[[int], None] = lambda _: None
) -> int:
    """Replace a file by one without some rows. `before` is called with its size first. Returns how many rows went."""
    table = pq.read_table(path, partitioning=None)
    is_mine = mask_of(table)
    gone: int = pc.sum(is_mine).as_py() or 0
    if gone:
        sink = pa.BufferOutputStream()
        pq.write_table(table.filter(pc.invert(is_mine)), sink, compression="zstd", write_page_checksum=True)
        content = memoryview(sink.getvalue())
        before(len(content))
        replace_file(path, [content])
    return gone
