"""Rotated files: what readers see, what stays within bounds, what a dead writer and a full disk leave."""

import fcntl
import time
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.base.clock import Clock
from service.log_files.folder import LogFolder
from service.log_files.rotated_files import RotatedFiles
from tests.training_data import small_disk

PREFIX = "impressions-"


class Writer(RotatedFiles):
    """A writer with small bounds that remembers how many files were removed."""

    def __init__(self, folder: Path, *, file_bytes: int = 100, keep_bytes: int | None = 10_000) -> None:
        self.removed = self.closed = 0
        super().__init__(
            LogFolder(folder, PREFIX),
            Clock(),
            file_bytes=file_bytes,
            keep_bytes=keep_bytes,
            on_removed=self._count,
            on_closed=self._note_closed,
        )

    def _note_closed(self) -> None:
        self.closed += 1

    def _count(self, removed: int) -> None:
        self.removed += removed


def whole_files(folder: Path) -> list[Path]:
    return LogFolder(folder, PREFIX).whole_files()


def contents(folder: Path) -> list[bytes]:
    return [line for file in whole_files(folder) for line in file.read_bytes().splitlines(keepends=True)]


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.part"))


def test_a_reader_sees_a_file_when_it_is_whole_and_the_owner_alone_may_read_it(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    assert writer.append([b"one\n", b"two\n"]) == (2, None)
    assert contents(tmp_path) == []
    (part,) = parts(tmp_path)
    assert part.stat().st_mode & 0o777 == 0o600
    writer.close()
    assert contents(tmp_path) == [b"one\n", b"two\n"]
    assert parts(tmp_path) == []
    assert writer.closed == 1
    (file,) = whole_files(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=2), max_size=40), keep_bytes=st.integers(0, 500)
)
def test_files_and_folder_keep_their_bounds_and_the_newest_lines(
    tmp_path: Path, sizes: list[list[int]], keep_bytes: int
) -> None:
    writer = Writer(tmp_path, keep_bytes=keep_bytes)
    before = {file.name for file in tmp_path.iterdir()}
    for name in before:
        (tmp_path / name).unlink()
    given_lines = []
    closed = set[str]()
    for number, batch in enumerate(sizes):
        lines = [b"%03d" % number + b"x" * (size - 1) + b"\n" for size in batch]
        lines = [line[-size:] for line, size in zip(lines, batch, strict=True)]
        assert writer.append(lines) == (len(lines), None)
        given_lines += lines
        closed |= {file.name for file in whole_files(tmp_path)}
        held = [file.stat().st_size for file in tmp_path.iterdir()]
        assert all(size <= 100 for size in held)
        assert sum(held) <= keep_bytes + 100
    writer.close()
    kept = contents(tmp_path)
    assert kept == given_lines[len(given_lines) - len(kept) :]
    assert sum(map(len, kept)) <= keep_bytes
    # Nothing goes that could stay: one file more would be over the bound.
    assert kept == given_lines or sum(map(len, kept)) + 100 > keep_bytes
    assert writer.removed >= len(closed - {file.name for file in whole_files(tmp_path)})


def test_the_bound_counts_both_kinds_and_the_oldest_goes_first(tmp_path: Path) -> None:
    sizes = {"1.parquet": 40, "2.jsonl": 40, "2.parquet": 10, "3.parquet": 30, "4.jsonl": 30}
    for name, size in sizes.items():
        (tmp_path / f"impressions-{name}").write_bytes(b"x" * size)
    (tmp_path / "impressions-0.csv").write_bytes(b"x" * 1000)
    writer = Writer(tmp_path, keep_bytes=75)
    writer.tidy_folder()
    assert [file.name for file in whole_files(tmp_path)] == [
        "impressions-2.parquet",
        *(f"impressions-{name}" for name in ("3.parquet", "4.jsonl")),
    ]
    assert not (tmp_path / "impressions-2.jsonl").exists()
    assert writer.removed == 2


def test_of_a_file_in_both_kinds_a_reader_sees_one(tmp_path: Path) -> None:
    for name in ("impressions-b.jsonl", "impressions-a.jsonl", "impressions-a.parquet", ".impressions-b.parquet.part"):
        (tmp_path / name).write_bytes(b"x")
    assert [file.name for file in whole_files(tmp_path)] == [
        "impressions-a.parquet",
        "impressions-b.jsonl",
    ]


def test_what_a_dead_writer_left_is_cut_after_its_last_line_and_named(tmp_path: Path) -> None:
    left = {"a": b"one\ntwo\nthr", "b": b"no line at all", "c": b"", "d": b"four\n" + b"x" * 200_000}
    for name, content in left.items():
        (tmp_path / f".impressions-{name}.jsonl.part").write_bytes(content)
    Writer(tmp_path).tidy_folder()
    assert contents(tmp_path) == [b"one\n", b"two\n", b"four\n"]
    assert parts(tmp_path) == []


def test_what_a_writer_at_work_holds_is_left_alone(tmp_path: Path) -> None:
    first, second = Writer(tmp_path), Writer(tmp_path)
    first.append([b"one\n"])
    second.append([b"two\n"])
    second.tidy_folder()
    assert len(parts(tmp_path)) == 2
    second.close()
    assert contents(tmp_path) == [b"two\n"]
    assert first.append([b"three\n"]) == (1, None)
    first.close()
    assert sorted(contents(tmp_path)) == [b"one\n", b"three\n", b"two\n"]


def test_other_files_of_the_folder_are_never_touched(tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("notes.jsonl", ".hidden.part", ".impressions-x.part", "impressions-x.csv")]
    for other in others:
        other.write_bytes(b"half a line")
    with (tmp_path / ".impressions-held.jsonl.part").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        writer = Writer(tmp_path, keep_bytes=0)
        writer.append([b"one\n"])
        writer.close()
        assert [other.read_bytes() for other in others] == [b"half a line"] * 4
        assert [part.name for part in parts(tmp_path)] == [
            ".hidden.part",
            ".impressions-held.jsonl.part",
            ".impressions-x.part",
        ]


def test_a_full_disk_keeps_whole_lines_and_says_how_many(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as folder:
        writer = Writer(folder, file_bytes=1_000_000, keep_bytes=1_000_000)
        lines = [b"%05d" % number + b"x" * 994 + b"\n" for number in range(100)]
        written, error = writer.append(lines)
        assert error is not None
        assert error.errno == 28
        assert written == 64 * 1024 // 1000  # the disk holds a part of one line more, which must not stay
        assert writer.append(lines[:1])[0] == 0
        (part,) = parts(folder)
        assert part.read_bytes() == b"".join(lines[:written])
        writer.close()
        assert contents(folder) == lines[:written]
        whole_files(folder)[0].unlink()
        assert writer.append(lines[:3]) == (3, None)
        writer.close()
        assert contents(folder) == lines[:3]


def test_of_a_block_that_does_not_fit_on_the_disk_nothing_stays(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as folder:
        writer = Writer(folder, file_bytes=1_000_000, keep_bytes=None)
        block = b"".join(b"%05d" % number + b"x" * 994 + b"\n" for number in range(30))
        written, error = writer.append([block, block, block])
        assert error is not None
        assert (error.errno, written) == (28, 2)
        (part,) = parts(folder)
        assert part.read_bytes() == block + block
        assert writer.append([b"one\n"]) == (1, None)  # 60,000 of 65,536 bytes are taken
        writer.close()
        assert b"".join(contents(folder)) == block + block + b"one\n"


def test_without_a_bound_nothing_is_removed(tmp_path: Path) -> None:
    writer = Writer(tmp_path, keep_bytes=None)
    for number in range(50):
        writer.append([b"%02d" % number + b"x" * 60 + b"\n"])
    writer.close()
    assert len(contents(tmp_path)) == 50
    assert writer.removed == 0
    assert writer.total_bytes == 50 * 63


def test_names_are_in_the_order_of_time(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for number in range(5):
        writer.append([b"%d\n" % number])
        writer.close()
        time.sleep(0.001)  # names tell microseconds
    assert contents(tmp_path) == [b"%d\n" % number for number in range(5)]
