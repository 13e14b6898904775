"""A stream whose requests stay whole: each row once, requests of a row group in one batch, resumed at any step."""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.data.log_files import VALIDATES, data_config, numbered, numbers_of, stream
from training.data.rows import Batch

# Rows of row groups, file by file. A request is of seven rows one after the other, and borders cut some of them.
GROUPS = [[30, 7, 40], [25, 60], [13]]
SIZE = 7


def request_of(row: int) -> int | None:
    """Every eleventh row has none."""
    return None if row % 11 == 0 else row // SIZE


def write_requests(folder: Path) -> list[range]:
    """A numbered log with requests. Returns the rows of each row group."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = list(itertools.accumulate(itertools.chain(*GROUPS), initial=0))
    groups = [range(first, last) for first, last in itertools.pairwise(ends)]
    left = iter(groups)
    for name, sizes in enumerate(GROUPS):
        tables = [
            numbered(rows).append_column("request", pa.array([request_of(row) for row in rows], pa.int64()))
            for rows in itertools.islice(left, len(sizes))
        ]
        with pq.ParquetWriter(folder / f"part-{name}.parquet", tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table)
    return groups


def codes_of(batch: Batch) -> list[int]:
    assert batch.groups_B is not None
    return [int(code) for code, counts in zip(batch.groups_B, batch.observed_BT[:, 0], strict=True) if counts]


def alone(groups: Sequence[range]) -> int:
    """Trained rows without another of their request in the row group."""
    found = 0
    for rows in groups:
        trained = [row for row in rows if row % 10 != VALIDATES]
        for row in trained:
            same = [other for other in trained if request_of(other) == request_of(row)]
            found += request_of(row) is None or len(same) == 1
    return found


@pytest.mark.parametrize("batch_size", [7, 20, 1000])
@pytest.mark.parametrize("readers", [0, 1])
def test_requests_of_a_row_group_are_in_one_batch(
    tmp_path: Path, batch_size: int, readers: int, caplog: pytest.LogCaptureFixture
) -> None:
    groups = write_requests(tmp_path)
    group_of = {row: number for number, rows in enumerate(groups) for row in rows}
    source = stream(data_config(tmp_path, together="request", lanes=1, readers=readers), batch_size)
    with caplog.at_level(logging.INFO):
        batches = list(source.batches(0, 0))
    assert len(batches) == source.steps
    place: dict[tuple[int, int], tuple[int, int]] = {}
    seen: list[int] = []
    for step, batch in enumerate(batches):
        rows, codes = numbers_of(batch), codes_of(batch)
        seen += rows
        assert max(codes) < len(batch.targets_BT)
        assert abs(len(rows) - min(batch_size, source.rows - step * batch_size)) < SIZE
        for row, code in zip(rows, codes, strict=True):
            request = request_of(row)
            if request is None:
                assert codes.count(code) == 1
            else:
                assert place.setdefault((group_of[row], request), (step, code)) == (step, code)
    # Nor do two requests share a code.
    assert len(set(place.values())) == len(place)
    assert sorted(seen) == [row for row in range(sum(map(len, groups))) if row % 10 != VALIDATES]
    assert f"{alone(groups)} rows of {source.rows} alone in their group" in caplog.text


@pytest.mark.parametrize("window", [1, 2])
def test_a_resumed_epoch_gives_the_rest_of_it(tmp_path: Path, window: int) -> None:
    groups = write_requests(tmp_path)
    source = stream(data_config(tmp_path, together="request", lanes=3, window=window), 16)
    epoch = [(numbers_of(batch), codes_of(batch)) for batch in source.batches(2, 0)]
    seen = sorted(row for rows, _ in epoch for row in rows)
    assert seen == [row for row in range(sum(map(len, groups))) if row % 10 != VALIDATES]
    for step in range(source.steps + 1):
        assert [(numbers_of(batch), codes_of(batch)) for batch in source.batches(2, step)] == epoch[step:]
    assert [numbers_of(batch) for batch in source.batches(3, 0)] != [rows for rows, _ in epoch]


def test_what_a_stream_cannot_keep_whole_is_refused(tmp_path: Path) -> None:
    write_requests(tmp_path)
    config = data_config(tmp_path, together="request")
    with pytest.raises(ValueError, match=r"a stream keeps rows together for one process, and here are 2; use read: m"):
        stream(config, rank=0, world=2)
    with pytest.raises(ValueError, match=r"a group has [67] rows, and batch_size is 5"):
        list(stream(config, 5).batches(0, 0))
    assert stream(config).fingerprint() != stream(data_config(tmp_path)).fingerprint()
