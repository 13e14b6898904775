"""A stream of rows: every row once an epoch, the same global batches on any number of processes, resumed anywhere."""

import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.data.log_files import (
    SCHEMA,
    VALIDATES,
    data_config,
    encoder,
    lists_of,
    numbered,
    numbers_of,
    stream,
    write_groups,
)
from training.config import DataConfig
from training.data.kinds.columns import columns_from_arrow
from training.data.rows import Rows
from training.data.stream import StreamSource

LANES = 4
GROUPS = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=4), min_size=1, max_size=3)


def trained(groups: Sequence[Sequence[int]]) -> list[int]:
    return [row for row in range(sum(map(sum, groups))) if row % 10 != VALIDATES]


@settings(max_examples=10)
@given(
    groups=GROUPS.filter(lambda groups: sum(map(sum, groups)) >= 12),
    batch_size=st.integers(3, 50),
    window=st.integers(1, 3),
    readers=st.integers(0, 2),
)
def test_any_number_of_processes_gives_every_row_once_in_the_same_batches(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[int]], batch_size: int, window: int, readers: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    write_groups(folder, groups)
    config = data_config(folder, window=window, readers=readers)
    whole: list[list[int]] = []
    for world in (1, 2, 4):
        sources = [stream(config, batch_size, rank=rank, world=world) for rank in range(world)]
        parts = [[numbers_of(batch) for batch in source.batches(1, 0)] for source in sources]
        assert {len(part) for part in parts} == {sources[0].steps}
        for step in zip(*parts, strict=True):
            assert max(map(len, step)) - min(map(len, step)) <= 1
        batches = [sorted(row for part in step for row in part) for step in zip(*parts, strict=True)]
        assert sorted(row for batch in batches for row in batch) == trained(groups)
        assert {len(batch) for batch in batches[:-1]} <= {batch_size}
        whole = whole or batches
        assert batches == whole
    assert len({source.fingerprint() for source in sources}) == 1
    assert sources[0].rows == len(trained(groups))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_resumed_epoch_gives_the_rest_of_it(tmp_path: Path, rank: int) -> None:
    write_groups(tmp_path, [[30, 7, 1], [25], [13, 40]])
    source = stream(data_config(tmp_path, window=2), 9, rank=rank, world=2)
    epoch = [numbers_of(batch) for batch in source.batches(3, 0)]
    for step in range(source.steps + 1):
        assert [numbers_of(batch) for batch in source.batches(3, step)] == epoch[step:]


def test_epochs_and_seeds_have_orders_of_their_own(tmp_path: Path) -> None:
    write_groups(tmp_path, [[200], [200]])
    config = data_config(tmp_path)
    orders = [
        [row for batch in stream(config, seed=seed).batches(epoch, 0) for row in numbers_of(batch)]
        for seed, epoch in ((5, 0), (5, 1), (6, 0), (5, 0))
    ]
    assert orders[0] == orders[3]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == trained([[400]]) for order in orders)


def test_rows_keep_their_lists_ids_and_labels(tmp_path: Path) -> None:
    """Each row as the batch has it, against the row encoded alone."""
    write_groups(tmp_path, [[50, 31], [40]])
    alone = {}
    for row in trained([[121]]):
        table = numbered([row])
        alone[row] = Rows.encode(SCHEMA, encoder(), table, columns_from_arrow(SCHEMA, table), as_served=False).part(
            0, 1
        )
    for batch in stream(data_config(tmp_path, window=2), 17).batches(0, 0):
        numbers = batch.candidate.numbers_BQ[:, 0].int().tolist()
        assert batch.targets_BT[:, 0].tolist() == [row % 2 for row in numbers]
        assert batch.request.ids_BK.tolist() == [alone[row].request.ids_BK[0].tolist() for row in numbers]
        for place, of_feature in enumerate(lists_of(batch)):
            assert of_feature == [list(lists_of(alone[row]))[place][0] for row in numbers]


def test_no_more_than_two_windows_a_lane_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_groups(tmp_path, [[10] * 10] * 12)
    read, held, most = StreamSource.read, weakref.WeakSet[Rows](), [0]

    def counted(self: StreamSource, *arguments: Any) -> Rows:
        rows = read(self, *arguments)
        held.add(rows)
        most[0] = max(most[0], len(held))
        return rows

    monkeypatch.setattr(StreamSource, "read", counted)
    source = stream(data_config(tmp_path, readers=2), 16)
    assert sum(len(numbers_of(batch)) for batch in source.batches(0, 0)) == source.rows == 1080
    assert LANES < most[0] <= 2 * LANES


READS: list[tuple[str, int]] = []


class CountedFiles(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Files in memory that note where they are read."""

    protocol = "counted"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = MemoryFileSystem._strip_protocol(path.replace("counted://", "memory://"))
        return stripped

    def _open(self, path: str, *arguments: Any, **options: Any) -> Any:
        file = super()._open(path, *arguments, **options)
        read = file.read

        def noted(size: int = -1) -> bytes:
            READS.append((path, file.tell()))
            content: bytes = read(size)
            return content

        file.read = noted
        return file


@pytest.fixture
def counted_log(tmp_path: Path) -> Iterator[DataConfig]:
    """Six files of three row groups of 20 rows, on a filesystem that counts."""
    write_groups(tmp_path, [[20, 20, 20]] * 6)
    fsspec.register_implementation("counted", CountedFiles, clobber=True)
    system = fsspec.filesystem("counted")
    for file in sorted(tmp_path.glob("*.parquet")):
        system.pipe(f"/log/{file.name}", file.read_bytes())
    READS.clear()
    yield data_config("counted://log", readers=0)
    system.rm("/log", recursive=True)


def row_groups_read() -> set[tuple[str, int]]:
    """The row groups of which some column was read."""
    found = set()
    for path in {path for path, _ in READS}:
        with fsspec.filesystem("counted").open(path) as file:
            metadata = pq.ParquetFile(file).metadata
        starts = [metadata.row_group(group).column(0).dictionary_page_offset or 4 for group in range(3)]
        end = metadata.row_group(2).column(metadata.num_columns - 1)
        last = end.data_page_offset + end.total_compressed_size
        for of, offset in READS:
            if of == path and starts[0] <= offset < last:
                found.add((path, max(group for group, start in enumerate(starts) if start <= offset)))
    return found


def test_resuming_reads_the_windows_it_stands_in_and_nothing_before_them(counted_log: DataConfig) -> None:
    source = stream(counted_log, 16)
    READS.clear()
    batches = list(source.batches(0, 0))
    assert len(row_groups_read()) == 18
    READS.clear()
    last = list(source.batches(0, source.steps - 1))
    assert [numbers_of(batch) for batch in last] == [numbers_of(batches[-1])]
    # Four lanes end in a row group each. One may end just after a border between two.
    assert len(row_groups_read()) <= 2 * LANES


def test_a_process_reads_the_row_groups_of_its_own_lanes(counted_log: DataConfig) -> None:
    read = []
    for rank in range(2):
        source = stream(counted_log, 16, rank=rank, world=2)
        READS.clear()
        list(source.batches(0, 0))
        read.append(row_groups_read())
    assert len(read[0] | read[1]) == 18
    assert len(read[0] & read[1]) <= LANES - 1  # the row groups that borders between lanes cut


def test_lanes_that_cannot_be_shared_out_are_refused(tmp_path: Path) -> None:
    write_groups(tmp_path, [[40]])
    with pytest.raises(ValueError, match=r"data\.lanes: 4 lanes cannot be shared evenly by 3 processes"):
        stream(data_config(tmp_path), rank=0, world=3)
    with pytest.raises(ValueError, match=r"data\.lanes: 64 is more than the 36 training rows"):
        stream(data_config(tmp_path, lanes=64))


def test_another_order_or_other_rows_have_another_fingerprint(tmp_path: Path) -> None:
    for name in "ab":
        write_groups(tmp_path / name, [[40, 20], [30]])
    write_groups(tmp_path / "c", [[40, 20], [30]], first=10)
    same = stream(data_config(tmp_path / "a")).fingerprint()
    assert stream(data_config(tmp_path / "b", readers=3)).fingerprint() == same
    others = [
        stream(data_config(tmp_path / "c")),
        stream(data_config(tmp_path / "a"), 9),
        stream(data_config(tmp_path / "a"), seed=6),
        stream(data_config(tmp_path / "a", window=2)),
        stream(data_config(tmp_path / "a", lanes=2)),
    ]
    assert len({same, *(source.fingerprint() for source in others)}) == 6
